"""S = scale * (x A_pool[idx]^T): what the rank rows of every batch row see of its activations.

Takes x and the rows of A; gives S, which the expanding kernels read. It knows no B and no base weight.
"""

import triton
import triton.language as tl
from torch import Tensor

from loramux_kernels.tables import Tables
from loramux_kernels.triton.dispatch import ShrinkTile


@triton.jit
def _shrink_kernel(
    x_ptr,  # [rows, M, K]
    a_ptr,  # row r of part p begins at p * A_PART + r * A_ROW
    s_ptr,  # [rows, M, PARTS * R]
    idx_ptr,  # [rows, R]
    scale_ptr,  # [rows, R]
    nrank_ptr,  # [rows]
    M,
    K,
    R: tl.constexpr,
    PARTS: tl.constexpr,
    A_PART,
    A_ROW,
    SCALED: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of S: BLOCK_M activations of one batch row, BLOCK_R rank rows of one part."""
    blocks: tl.constexpr = R // BLOCK_R
    part = tl.program_id(0) // blocks
    first = tl.program_id(0) % blocks * BLOCK_R
    row = tl.program_id(2)
    if first < tl.load(nrank_ptr + row):
        m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
        r = first + tl.arange(0, BLOCK_R)
        k = tl.arange(0, BLOCK_K)
        rank_rows = tl.load(idx_ptr + row * R + r).to(tl.int64)
        x_ptrs = x_ptr + row.to(tl.int64) * M * K + m[:, None] * K + k[None, :]
        a_ptrs = a_ptr + part.to(tl.int64) * A_PART + rank_rows[None, :] * A_ROW + k[:, None]
        acc = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
        for start in range(0, K, BLOCK_K):
            if EVEN_K:
                x = tl.load(x_ptrs, mask=m[:, None] < M, other=0.0)
                a = tl.load(a_ptrs)
            else:
                x = tl.load(x_ptrs, mask=(m[:, None] < M) & (k[None, :] < K - start), other=0.0)
                a = tl.load(a_ptrs, mask=k[:, None] < K - start, other=0.0)
            acc = tl.dot(x, a, acc, input_precision="ieee")
            x_ptrs += BLOCK_K
            a_ptrs += BLOCK_K
        if SCALED:
            acc *= tl.load(scale_ptr + row * R + r)[None, :]
        s_ptrs = s_ptr + row.to(tl.int64) * M * (PARTS * R) + m[:, None] * (PARTS * R) + (part * R + r)[None, :]
        tl.store(s_ptrs, acc.to(s_ptr.dtype.element_ty), mask=m[:, None] < M)


def shrink(
    x: Tensor,
    a_pool: Tensor,
    s: Tensor,
    tables: Tables,
    tile: ShrinkTile,
    *,
    parts: int,
    part_stride: int,
    row_stride: int,
    scaled: bool = True,
) -> None:
    """Writes S into s [rows, M, parts * R]: the columns of tiles that begin below a batch row's nrank.

    x: [rows, M, K]. part_stride, row_stride: elements of a_pool from one part to the next and from one rank
    row to the next: a stacked pool has its parts one after another, a kxk convolution has its k * k taps
    within each row. scaled: whether S is multiplied by the scales (a convolution's taps are summed first).
    """
    rows, m, k = x.shape
    block_r = min(tile.block_r, tables.width)
    _shrink_kernel[(parts * (tables.width // block_r), triton.cdiv(m, tile.block_m), rows)](
        x,
        a_pool,
        s,
        tables.idx,
        tables.scale,
        tables.nrank,
        m,
        k,
        tables.width,
        parts,
        part_stride,
        row_stride,
        SCALED=scaled,
        EVEN_K=k % tile.block_k == 0,
        BLOCK_M=tile.block_m,
        BLOCK_R=block_r,
        BLOCK_K=tile.block_k,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
