"""y = c y + bias + B_pool[idx]^T S in place, for a kxk convolution whose S is a shifted sum over its taps.

Takes the vendor's base convolution and the products of every input pixel with every tap of the rank rows;
changes the convolution. S of an output pixel is the sum over taps of what the tap's input pixel gave
(kn2row, as in Vasudevan et al., arXiv:1704.04428), zero where the tap falls outside the picture.
"""

import triton
import triton.language as tl
from torch import Tensor

from loramux_kernels.tables import Tables
from loramux_kernels.triton.column_scale import column_scale
from loramux_kernels.triton.dispatch import ExpandTile


@triton.jit
def _conv_expand_kernel(
    y_ptr,  # [rows, OUT_H * OUT_W, N]
    bias_ptr,  # [N]
    z_ptr,  # fp32 [rows, H * W, KH * KW * R], not scaled
    b_ptr,  # [P, N]
    idx_ptr,  # [rows, R]
    scale_ptr,  # [rows, R]
    nrank_ptr,  # [rows]
    g_ptr,  # [SCALE_ROWS, N]
    g_idx_ptr,  # [rows, G]
    g_scale_ptr,  # [rows, G]
    g_count_ptr,  # [rows]
    H,
    W,
    OUT_H,
    OUT_W,
    N,
    R: tl.constexpr,
    G: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    OUTPUT_SCALES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One tile of y: BLOCK_M output pixels of one batch row, BLOCK_N output channels."""
    row = tl.program_id(2)
    nrank = tl.load(nrank_ptr + row)
    if HAS_BIAS or OUTPUT_SCALES or nrank > 0:
        m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        pixels = OUT_H * OUT_W
        mask = (m[:, None] < pixels) & (n[None, :] < N)
        y_ptrs = y_ptr + row.to(tl.int64) * pixels * N + m[:, None] * N + n[None, :]
        acc = tl.load(y_ptrs, mask=mask, other=0.0).to(tl.float32)
        if OUTPUT_SCALES:
            acc *= column_scale(g_ptr, g_idx_ptr, g_scale_ptr, g_count_ptr, row, n, N, G)[None, :]
        z_ptr += row.to(tl.int64) * H * W * (KH * KW * R)
        top = m // OUT_W * STRIDE_H - PAD_H
        left = m % OUT_W * STRIDE_W - PAD_W
        for first in range(0, nrank, BLOCK_R):
            r = first + tl.arange(0, BLOCK_R)
            s = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
            for tap in tl.static_range(KH * KW):
                y_in = top + tap // KW * DILATION_H
                x_in = left + tap % KW * DILATION_W
                inside = (m < pixels) & (y_in >= 0) & (y_in < H) & (x_in >= 0) & (x_in < W)
                place = (y_in * W + x_in)[:, None] * (KH * KW * R) + (tap * R + r)[None, :]
                s += tl.load(z_ptr + place, mask=inside[:, None], other=0.0)
            s *= tl.load(scale_ptr + row * R + r)[None, :]
            rank_rows = tl.load(idx_ptr + row * R + r).to(tl.int64)
            b = tl.load(b_ptr + rank_rows[:, None] * N + n[None, :], mask=n[None, :] < N, other=0.0)
            acc = tl.dot(s.to(b.dtype), b, acc, input_precision="ieee")
        if HAS_BIAS:
            acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=mask)


def conv_expand(
    y: Tensor,
    bias: Tensor | None,
    z: Tensor,
    b_pool: Tensor,
    g_pool: Tensor | None,
    tables: Tables,
    tile: ExpandTile,
    *,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    """Changes y [rows, H', W', N] (channels last).

    bias: [N] or None; z: fp32 [rows, H * W, kh * kw * R] of `shrink`, not scaled; size: (H, W) of the input.
    """
    rows, out_h, out_w, n = y.shape
    outputs = tables.outputs if g_pool is not None else None
    _conv_expand_kernel[(triton.cdiv(n, tile.block_n), triton.cdiv(out_h * out_w, tile.block_m), rows)](
        y,
        bias,
        z,
        b_pool,
        tables.idx,
        tables.scale,
        tables.nrank,
        g_pool,
        outputs and outputs.idx,
        outputs and outputs.scale,
        outputs and outputs.count,
        *size,
        out_h,
        out_w,
        n,
        tables.width,
        outputs.idx.shape[1] if outputs else 0,
        *kernel,
        *stride,
        *padding,
        *dilation,
        HAS_BIAS=bias is not None,
        OUTPUT_SCALES=outputs is not None,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_R=min(tile.block_r, tables.width),
        num_warps=tile.warps,
    )
