"""The contract of the rank-row operations: shapes, dtypes and the choice of implementation.

Takes activations, base weights, pools and tables; checks that they belong together; gives
activations. It knows no adapter and no request.
"""

from typing import Literal

from torch import Tensor

from loramux_kernels import reference
from loramux_kernels.pool import Tables

Impl = Literal["reference"]


def lora_linear(
    x: Tensor,
    w0: Tensor,
    bias: Tensor | None,
    a_pool: Tensor,
    b_pool: Tensor,
    tables: Tables,
    *,
    impl: Impl = "reference",
) -> Tensor:
    """y = W0 x + bias + B_pool[idx]^T (scale * (A_pool[idx] x)), another blend in every batch row.

    Args:
        x: activations [rows, ..., K].
        w0: base weight [N, K].
        bias: base bias [N] or None.
        a_pool: rank rows of A [P, K]; row 0 is zero.
        b_pool: rank rows of B, transposed [P, N]; row 0 is zero.
        tables: rank rows and scales of every batch row; `tables.rows` equals x.shape[0].
        impl: implementation; all agree to the rounding of their dtype.

    Returns:
        [rows, ..., N] in the dtype of x.

    Raises:
        ValueError: where shapes or dtypes do not belong together.
    """
    _check(x, x.shape[-1], w0.shape[1], w0.shape[0], a_pool, b_pool, tables)
    return _IMPLEMENTATIONS[impl].lora_linear(x, w0, bias, a_pool, b_pool, tables)


def lora_conv2d(
    x: Tensor,
    w0: Tensor,
    bias: Tensor | None,
    a_pool: Tensor,
    b_pool: Tensor,
    tables: Tables,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    impl: Impl = "reference",
) -> Tensor:
    """The convolution with its rank rows: A is a kxk convolution to the rank, B is 1x1.

    Args:
        x: activations [rows, Cin, H, W].
        w0: base weight [N, Cin, kh, kw]; one group.
        bias: base bias [N] or None.
        a_pool: rank rows of A [P, kh * kw * Cin], each laid out [kh][kw][Cin]; row 0 is zero.
        b_pool: rank rows of B, transposed [P, N]; row 0 is zero.
        tables: rank rows and scales of every batch row; `tables.rows` equals x.shape[0].
        stride, padding, dilation: those of the base convolution.
        impl: implementation; all agree to the rounding of their dtype.

    Returns:
        [rows, N, H', W'] in the dtype of x.

    Raises:
        ValueError: where shapes or dtypes do not belong together.
    """
    if x.dim() != 4 or x.shape[1] != w0.shape[1]:
        raise ValueError(f"x is {list(x.shape)}, expected [rows, {w0.shape[1]}, H, W]")
    k = w0.shape[1] * w0.shape[2] * w0.shape[3]
    _check(x, k, k, w0.shape[0], a_pool, b_pool, tables)
    return _IMPLEMENTATIONS[impl].lora_conv2d(x, w0, bias, a_pool, b_pool, tables, stride, padding, dilation)


_IMPLEMENTATIONS = {"reference": reference}


def _check(x: Tensor, k_x: int, k: int, n: int, a_pool: Tensor, b_pool: Tensor, tables: Tables) -> None:
    if k_x != k:
        raise ValueError(f"x has {k_x} input features, the base weight has {k}")
    if a_pool.shape[1:] != (k,) or b_pool.shape[1:] != (n,) or len(a_pool) != len(b_pool):
        raise ValueError(f"pools are {list(a_pool.shape)} and {list(b_pool.shape)}, expected [P, {k}] and [P, {n}]")
    if tables.rows != x.shape[0]:
        raise ValueError(f"tables hold {tables.rows} rows, x has {x.shape[0]}")
    if not x.dtype == a_pool.dtype == b_pool.dtype:
        raise ValueError(f"x is {x.dtype}, pools are {a_pool.dtype} and {b_pool.dtype}")
