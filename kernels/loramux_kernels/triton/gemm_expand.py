"""y = c (W0 x) + bias + B_pool[idx]^T S in one accumulator: a GEMM whose K loop goes on over rank rows.

Takes x, the base weight, S of `shrink` and the rows of B; gives y. The order matters: the output scales c
apply to the base term alone, so the accumulator is scaled between the loops. It knows no A.
"""

import triton
import triton.language as tl
from torch import Tensor

from loramux_kernels.tables import Tables
from loramux_kernels.triton.column_scale import column_scale
from loramux_kernels.triton.dispatch import GemmTile

GROUP_M = 8  # tiles of y that share weight columns run together, so that W0 is read from L2


@triton.jit
def tile_of(M, BLOCK_M: tl.constexpr, tiles_n, GROUP_M: tl.constexpr):
    """(batch row, tile along M, tile along N) of a program: GROUP_M tiles along M before the next along N."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    row = tl.program_id(0) // (tiles_m * tiles_n)
    place = tl.program_id(0) % (tiles_m * tiles_n)
    group = place // (GROUP_M * tiles_n)
    first = group * GROUP_M
    height = min(tiles_m - first, GROUP_M)
    inside = place % (GROUP_M * tiles_n)
    return row, first + inside % height, inside // height


@triton.jit
def multiply(
    acc,
    x_ptr,  # of the batch row, [M, K]
    w_ptr,  # [N, K]
    m,
    n,
    M,
    N,
    K,
    EVEN_K: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """acc + x[m] W0[n]^T."""
    k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + m[:, None] * K + k[None, :]
    w_ptrs = w_ptr + n[None, :] * K + k[:, None]
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs, mask=m[:, None] < M, other=0.0)
            w = tl.load(w_ptrs, mask=n[None, :] < N, other=0.0)
        else:
            x = tl.load(x_ptrs, mask=(m[:, None] < M) & (k[None, :] < K - start), other=0.0)
            w = tl.load(w_ptrs, mask=(n[None, :] < N) & (k[:, None] < K - start), other=0.0)
        acc = tl.dot(x, w, acc, input_precision="ieee")
        x_ptrs += BLOCK_K
        w_ptrs += BLOCK_K
    return acc


@triton.jit
def expand_step(
    acc,
    s_ptr,  # of the batch row and part, [M, S_WIDTH]
    b_ptr,  # of the part, [P, N]
    rank_rows,  # [BLOCK_R]
    first,
    m,
    n,
    M,
    N,
    S_WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """acc + S[m] B_pool[rank_rows][:, n], S from column `first` on."""
    r = first + tl.arange(0, BLOCK_R)
    s = tl.load(s_ptr + m[:, None] * S_WIDTH + r[None, :], mask=m[:, None] < M, other=0.0)
    b = tl.load(b_ptr + rank_rows[:, None] * N + n[None, :], mask=n[None, :] < N, other=0.0)
    return tl.dot(s, b, acc, input_precision="ieee")


@triton.jit
def expand_rows(
    acc,
    s_ptr,  # of the batch row and part, [M, S_WIDTH]
    b_ptr,  # of the part, [P, N]
    idx_ptr,  # of the batch row, [R]
    nrank,
    m,
    n,
    M,
    N,
    S_WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """acc + S[m] B_pool[idx][:, n] over the first nrank rank rows."""
    for first in range(0, nrank, BLOCK_R):
        rank_rows = tl.load(idx_ptr + first + tl.arange(0, BLOCK_R)).to(tl.int64)
        acc = expand_step(acc, s_ptr, b_ptr, rank_rows, first, m, n, M, N, S_WIDTH, BLOCK_R)
    return acc


@triton.jit
def _gemm_expand_kernel(
    x_ptr,  # [rows, M, K]
    d_ptr,  # [rows, M, K], x times its input scales
    w_ptr,  # [PARTS * N, K]
    bias_ptr,  # [PARTS * N]
    s_ptr,  # [rows, M, PARTS * R]
    b_ptr,  # [PARTS, P, N]
    idx_ptr,  # [rows, R]
    nrank_ptr,  # [rows]
    g_ptr,  # [SCALE_ROWS, N], one part
    g_idx_ptr,  # [rows, G]
    g_scale_ptr,  # [rows, G]
    g_count_ptr,  # [rows]
    h_count_ptr,  # [rows]
    y_ptr,  # [rows, M, PARTS * N]
    M,
    N,
    K,
    B_PART,
    R: tl.constexpr,
    G: tl.constexpr,
    PARTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    OUTPUT_SCALES: tl.constexpr,
    INPUT_SCALES: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """One tile of y: BLOCK_M activations of one batch row, BLOCK_N outputs of one part."""
    part_tiles = tl.cdiv(N, BLOCK_N)
    row, tile_m, tile_n = tile_of(M, BLOCK_M, PARTS * part_tiles, GROUP_M)
    part = tile_n // part_tiles
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n % part_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    w_ptr += part.to(tl.int64) * N * K
    x_ptr += row.to(tl.int64) * M * K
    s_ptr += row.to(tl.int64) * M * (PARTS * R) + part * R
    b_ptr += part.to(tl.int64) * B_PART
    idx_ptr += row * R
    nrank = tl.load(nrank_ptr + row)
    if R == BLOCK_R:  # one step: its rows are looked up before the K loop, which hides the way to them
        rank_rows = tl.load(idx_ptr + tl.arange(0, BLOCK_R)).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if INPUT_SCALES:
        d_ptr += row.to(tl.int64) * M * K
        if tl.load(h_count_ptr + row) == 0:
            acc = multiply(acc, x_ptr, w_ptr, m, n, M, N, K, EVEN_K, BLOCK_K)
        elif OUTPUT_SCALES:
            if tl.load(g_count_ptr + row) > 0:  # both axes: (c - 1) (W0 x), then W0 (d x) on top
                acc = multiply(acc, x_ptr, w_ptr, m, n, M, N, K, EVEN_K, BLOCK_K)
    else:
        acc = multiply(acc, x_ptr, w_ptr, m, n, M, N, K, EVEN_K, BLOCK_K)
    if OUTPUT_SCALES:
        c = column_scale(g_ptr, g_idx_ptr, g_scale_ptr, g_count_ptr, row, n, N, G)
        if INPUT_SCALES:
            c -= (tl.load(h_count_ptr + row) > 0).to(tl.float32)
        acc *= c[None, :]
    if INPUT_SCALES:
        if tl.load(h_count_ptr + row) > 0:
            acc = multiply(acc, d_ptr, w_ptr, m, n, M, N, K, EVEN_K, BLOCK_K)
    if R == BLOCK_R:
        if nrank > 0:
            acc = expand_step(acc, s_ptr, b_ptr, rank_rows, 0, m, n, M, N, PARTS * R, BLOCK_R)
    else:
        acc = expand_rows(acc, s_ptr, b_ptr, idx_ptr, nrank, m, n, M, N, PARTS * R, BLOCK_R)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + part * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    y_ptrs = y_ptr + row.to(tl.int64) * M * (PARTS * N) + m[:, None] * (PARTS * N) + (part * N + n)[None, :]
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N))


def gemm_expand(
    x: Tensor,
    prescaled: Tensor | None,
    w0: Tensor,
    bias: Tensor | None,
    s: Tensor,
    b_pool: Tensor,
    g_pool: Tensor | None,
    tables: Tables,
    y: Tensor,
    tile: GemmTile,
) -> None:
    """Writes y [rows, M, parts * N].

    x: [rows, M, K]; prescaled: d x of the same shape, or None without input scales; w0: [parts * N, K];
    s: [rows, M, parts * R]; b_pool: [parts, P, N] or of one part [P, N]; g_pool: [SCALE_ROWS, N] or None.
    """
    rows, m, k = x.shape
    n = b_pool.shape[-1]
    parts = w0.shape[0] // n
    outputs = tables.outputs if g_pool is not None else None
    inputs = tables.inputs if prescaled is not None else None
    grid = (rows * triton.cdiv(m, tile.block_m) * parts * triton.cdiv(n, tile.block_n),)
    _gemm_expand_kernel[grid](
        x,
        prescaled,
        w0,
        bias,
        s,
        b_pool,
        tables.idx,
        tables.nrank,
        g_pool,
        outputs and outputs.idx,
        outputs and outputs.scale,
        outputs and outputs.count,
        inputs and inputs.count,
        y,
        m,
        n,
        k,
        b_pool.stride(0) if b_pool.dim() == 3 else 0,
        tables.width,
        outputs.idx.shape[1] if outputs else 0,
        parts,
        HAS_BIAS=bias is not None,
        OUTPUT_SCALES=outputs is not None,
        INPUT_SCALES=inputs is not None,
        EVEN_K=k % tile.block_k == 0,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        BLOCK_R=min(tile.block_r, tables.width),
        GROUP_M=GROUP_M,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
