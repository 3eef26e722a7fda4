"""y = W0 x + bias + B_pool[idx]^T (scale * (A_pool[idx] x)) in one launch, for small layers.

Takes x, the base weight and the rows of A and B; gives y. Every tile of y makes its own S beside the base
product, in the same pass over x: more arithmetic than `shrink` and `gemm_expand`, but no second launch.
"""

import triton
import triton.language as tl
from torch import Tensor

from loramux_kernels.tables import Tables
from loramux_kernels.triton.dispatch import GemmTile
from loramux_kernels.triton.gemm_expand import GROUP_M, tile_of


@triton.jit
def _single_pass_kernel(
    x_ptr,  # [rows, M, K]
    w_ptr,  # [PARTS * N, K]
    bias_ptr,  # [PARTS * N]
    a_ptr,  # [PARTS, P, K]
    b_ptr,  # [PARTS, P, N]
    idx_ptr,  # [rows, R]
    scale_ptr,  # [rows, R]
    nrank_ptr,  # [rows]
    y_ptr,  # [rows, M, PARTS * N]
    M,
    N,
    K,
    A_PART,
    B_PART,
    R: tl.constexpr,
    PARTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """One tile of y: BLOCK_M activations of one batch row, BLOCK_N outputs of one part."""
    part_tiles = tl.cdiv(N, BLOCK_N)
    row, tile_m, tile_n = tile_of(M, BLOCK_M, PARTS * part_tiles, GROUP_M)
    part = tile_n // part_tiles
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n % part_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    r = tl.arange(0, R)
    rank_rows = tl.load(idx_ptr + row * R + r).to(tl.int64)
    x_ptrs = x_ptr + row.to(tl.int64) * M * K + m[:, None] * K + k[None, :]
    w_ptrs = w_ptr + part.to(tl.int64) * N * K + n[None, :] * K + k[:, None]
    a_ptrs = a_ptr + part.to(tl.int64) * A_PART + rank_rows[None, :] * K + k[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    s = tl.zeros((BLOCK_M, R), tl.float32)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs, mask=m[:, None] < M, other=0.0)
            w = tl.load(w_ptrs, mask=n[None, :] < N, other=0.0)
            a = tl.load(a_ptrs)
        else:
            x = tl.load(x_ptrs, mask=(m[:, None] < M) & (k[None, :] < K - start), other=0.0)
            w = tl.load(w_ptrs, mask=(n[None, :] < N) & (k[:, None] < K - start), other=0.0)
            a = tl.load(a_ptrs, mask=k[:, None] < K - start, other=0.0)
        acc = tl.dot(x, w, acc, input_precision="ieee")
        s = tl.dot(x, a, s, input_precision="ieee")
        x_ptrs += BLOCK_K
        w_ptrs += BLOCK_K
        a_ptrs += BLOCK_K
    if tl.load(nrank_ptr + row) > 0:
        s *= tl.load(scale_ptr + row * R + r)[None, :]
        b_ptrs = b_ptr + part.to(tl.int64) * B_PART + rank_rows[:, None] * N + n[None, :]
        b = tl.load(b_ptrs, mask=n[None, :] < N, other=0.0)
        acc = tl.dot(s.to(b.dtype), b, acc, input_precision="ieee")
    if HAS_BIAS:
        acc += tl.load(bias_ptr + part * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    y_ptrs = y_ptr + row.to(tl.int64) * M * (PARTS * N) + m[:, None] * (PARTS * N) + (part * N + n)[None, :]
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N))


def single_pass(
    x: Tensor,
    w0: Tensor,
    bias: Tensor | None,
    a_pool: Tensor,
    b_pool: Tensor,
    tables: Tables,
    y: Tensor,
    tile: GemmTile,
) -> None:
    """Writes y [rows, M, parts * N]; tables at most `dispatch.SINGLE_WIDTH` wide and without scale tables.

    x: [rows, M, K]; w0: [parts * N, K]; pools: [parts, P, K] and [parts, P, N], or of one part [P, K] and [P, N].
    """
    rows, m, k = x.shape
    n = b_pool.shape[-1]
    parts = w0.shape[0] // n
    grid = (rows * triton.cdiv(m, tile.block_m) * parts * triton.cdiv(n, tile.block_n),)
    _single_pass_kernel[grid](
        x,
        w0,
        bias,
        a_pool,
        b_pool,
        tables.idx,
        tables.scale,
        tables.nrank,
        y,
        m,
        n,
        k,
        a_pool.stride(0) if a_pool.dim() == 3 else 0,
        b_pool.stride(0) if b_pool.dim() == 3 else 0,
        tables.width,
        parts,
        HAS_BIAS=bias is not None,
        EVEN_K=k % tile.block_k == 0,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP_M=GROUP_M,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
