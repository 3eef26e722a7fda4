"""y = c y + B_pool[idx]^T S + bias in place: the fallback where the vendor's GEMM makes y.

Takes a fresh base product, S of `shrink` and the rows of B; changes the product. Batch rows that nothing is
added to are neither read nor written. It knows no x and no base weight.
"""

import triton
import triton.language as tl
from torch import Tensor

from loramux_kernels.tables import Tables
from loramux_kernels.triton.column_scale import column_scale
from loramux_kernels.triton.dispatch import ExpandTile
from loramux_kernels.triton.gemm_expand import expand_rows


@triton.jit
def _expand_kernel(
    y_ptr,  # [rows, M, PARTS * N]
    bias_ptr,  # [PARTS * N]
    s_ptr,  # [rows, M, PARTS * R]
    b_ptr,  # [PARTS, P, N]
    idx_ptr,  # [rows, R]
    nrank_ptr,  # [rows]
    g_ptr,  # [SCALE_ROWS, N], one part
    g_idx_ptr,  # [rows, G]
    g_scale_ptr,  # [rows, G]
    g_count_ptr,  # [rows]
    M,
    N,
    B_PART,
    R: tl.constexpr,
    G: tl.constexpr,
    PARTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    OUTPUT_SCALES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One tile of y: BLOCK_M activations of one batch row, BLOCK_N outputs of one part."""
    part_tiles = tl.cdiv(N, BLOCK_N)
    part = tl.program_id(0) // part_tiles
    row = tl.program_id(2)
    nrank = tl.load(nrank_ptr + row)
    if HAS_BIAS or OUTPUT_SCALES or nrank > 0:
        m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
        n = tl.program_id(0) % part_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
        y_ptrs = y_ptr + row.to(tl.int64) * M * (PARTS * N) + m[:, None] * (PARTS * N) + (part * N + n)[None, :]
        mask = (m[:, None] < M) & (n[None, :] < N)
        acc = tl.load(y_ptrs, mask=mask, other=0.0).to(tl.float32)
        if OUTPUT_SCALES:
            acc *= column_scale(g_ptr, g_idx_ptr, g_scale_ptr, g_count_ptr, row, n, N, G)[None, :]
        s_ptr += row.to(tl.int64) * M * (PARTS * R) + part * R
        b_ptr += part.to(tl.int64) * B_PART
        acc = expand_rows(acc, s_ptr, b_ptr, idx_ptr + row * R, nrank, m, n, M, N, PARTS * R, BLOCK_R)
        if HAS_BIAS:
            acc += tl.load(bias_ptr + part * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=mask)


def expand(
    y: Tensor, bias: Tensor | None, s: Tensor, b_pool: Tensor, g_pool: Tensor | None, tables: Tables, tile: ExpandTile
) -> None:
    """Changes y [rows, M, parts * N].

    bias: [parts * N], where y does not have it yet; s: [rows, M, parts * R]; b_pool: [parts, P, N] or of one
    part [P, N]; g_pool: [SCALE_ROWS, N] or None.
    """
    rows, m = y.shape[:2]
    n = b_pool.shape[-1]
    parts = y.shape[2] // n
    outputs = tables.outputs if g_pool is not None else None
    _expand_kernel[(parts * triton.cdiv(n, tile.block_n), triton.cdiv(m, tile.block_m), rows)](
        y,
        bias,
        s,
        b_pool,
        tables.idx,
        tables.nrank,
        g_pool,
        outputs and outputs.idx,
        outputs and outputs.scale,
        outputs and outputs.count,
        m,
        n,
        b_pool.stride(0) if b_pool.dim() == 3 else 0,
        tables.width,
        outputs.idx.shape[1] if outputs else 0,
        parts,
        HAS_BIAS=bias is not None,
        OUTPUT_SCALES=outputs is not None,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_R=min(tile.block_r, tables.width),
        num_warps=tile.warps,
    )
