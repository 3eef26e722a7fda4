"""Scales of weight decomposition, formed on the device from a small pool of scale rows.

Takes scale tables and a pool of (scale - 1) rows; gives 1 + sum_i weight_i (scale_i - 1) for a block of
columns, and x multiplied by it. It knows no rank rows.
"""

import triton
import triton.language as tl
from torch import Tensor

from loramux_kernels.tables import ScaleTables

_BLOCK_M, _BLOCK_K = 32, 128  # moves each value of x once; nothing to tune


@triton.jit
def column_scale(pool_ptr, idx_ptr, scale_ptr, count_ptr, row, columns, width, G: tl.constexpr):
    """fp32 scales of `columns`, of which there are `width`, for batch row `row`."""
    total = tl.full(columns.shape, 1.0, tl.float32)
    for i in range(tl.load(count_ptr + row)):
        scale_row = tl.load(idx_ptr + row * G + i)
        values = tl.load(pool_ptr + scale_row * width + columns, mask=columns < width, other=0.0)
        total += tl.load(scale_ptr + row * G + i) * values
    return total


@triton.jit
def _prescale_kernel(
    x_ptr,  # [rows, M, K]
    y_ptr,  # [rows, M, K]
    h_ptr,  # [SCALE_ROWS, K]
    idx_ptr,  # [rows, G]
    scale_ptr,  # [rows, G]
    count_ptr,  # [rows]
    M,
    K,
    G: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(2)
    if tl.load(count_ptr + row) > 0:
        m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
        k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
        scale = column_scale(h_ptr, idx_ptr, scale_ptr, count_ptr, row, k, K, G)
        place = row.to(tl.int64) * M * K + m[:, None] * K + k[None, :]
        mask = (m[:, None] < M) & (k[None, :] < K)
        x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(y_ptr + place, (x * scale[None, :]).to(y_ptr.dtype.element_ty), mask=mask)


def prescale(x: Tensor, y: Tensor, h_pool: Tensor, tables: ScaleTables) -> None:
    """Writes d * x into y, both [rows, M, K], in the batch rows that have input scales; the others are not read."""
    rows, m, k = x.shape
    _prescale_kernel[(triton.cdiv(k, _BLOCK_K), triton.cdiv(m, _BLOCK_M), rows)](
        x,
        y,
        h_pool,
        tables.idx,
        tables.scale,
        tables.count,
        m,
        k,
        tables.idx.shape[1],
        BLOCK_M=_BLOCK_M,
        BLOCK_K=_BLOCK_K,
    )
