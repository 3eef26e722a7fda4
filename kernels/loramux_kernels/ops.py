"""The contract of the rank-row operations: shapes, dtypes and the choice of implementation.

Takes activations, base weights, pools and tables; checks that they belong together; gives
activations. It knows no adapter and no request.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from loramux_kernels.pool import FusedPool, RankRowPool
from loramux_kernels.tables import Tables

Impl = Literal["reference", "triton"]

_MODULES: dict[Impl, str] = {"reference": "loramux_kernels.reference", "triton": "loramux_kernels.triton.launch"}
_OLDEST_CARD = (8, 0)  # Ampere: 16-byte asynchronous copies and bf16


def default_impl(device: torch.device) -> Impl:
    """`triton` on NVIDIA cards from Ampere on, otherwise `reference`."""
    if device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= _OLDEST_CARD:
        return "triton"
    return "reference"


def check_impl(impl: Impl, device: torch.device) -> None:
    """Whether an implementation can run on a device here.

    Raises:
        ValueError: where it cannot; says what it needs.
    """
    if impl == "reference":
        return
    if find_spec("triton") is None:
        raise ValueError("the package triton is not installed")
    if device.type != "cuda" and not import_module("triton").knobs.runtime.interpret:
        raise ValueError(f"needs an NVIDIA card, or TRITON_INTERPRET=1 to be interpreted; the device is {device}")
    if device.type == "cuda" and default_impl(device) != "triton":
        raise ValueError(f"needs an NVIDIA card of compute capability 8.0 or newer, {device} is older or no such card")


def lora_linear(
    x: Tensor, w0: Tensor, bias: Tensor | None, pool: RankRowPool, tables: Tables, *, impl: Impl | None = None
) -> Tensor:
    """y = c (W0 x) + bias + B_pool[idx]^T (scale * (A_pool[idx] x)), another blend in every batch row.

    c = 1 + sum_i weight_i (g_i - 1) are the output scales of weight decomposition (DoRA, arXiv:2402.09353,
    with its strength as an interpolation between W0 and the decomposed weight); input scales d multiply x
    in the base term; a row that has both adds W0 (d x) + (c - 1) (W0 x). Without scale tables c = d = 1.

    Args:
        x: activations [rows, ..., K].
        w0: base weight [N, K].
        bias: base bias [N] or None.
        pool: rank rows a [P, K], b [P, N]; row 0 is zero.
        tables: rank rows and scales of every batch row; `tables.rows` equals x.shape[0].
        impl: implementation; all agree to the rounding of their dtype. None: by device.

    Returns:
        [rows, ..., N] in the dtype of x.

    Raises:
        ValueError: where shapes or dtypes do not belong together.
    """
    _check(x, x.shape[-1], w0.shape, pool.a, pool.b, tables)
    return _module(impl, x).lora_linear(x, w0, bias, pool, tables)


def lora_qkv(
    x: Tensor, w0: Tensor, bias: Tensor | None, pool: FusedPool, tables: Tables, *, impl: Impl | None = None
) -> Tensor:
    """`lora_linear` for layers that read one input: the q, k, v of an attention, or its k, v.

    Args:
        x: activations [rows, ..., K].
        w0: their base weights one below another [parts * N, K].
        bias: their biases [parts * N] or None.
        pool: their rank rows a [parts, P, K], b [parts, P, N]; a part that an adapter does not touch has zero rows.
        tables: rank rows and scales of every batch row, the same for all parts.
        impl: as in `lora_linear`.

    Returns:
        [rows, ..., parts * N] in the dtype of x.

    Raises:
        ValueError: where shapes or dtypes do not belong together.
    """
    if w0.shape[0] != len(pool.parts) * pool.b.shape[2]:
        raise ValueError(f"w0 has {w0.shape[0]} outputs, expected {len(pool.parts)} times {pool.b.shape[2]}")
    _check(x, x.shape[-1], (pool.b.shape[2], w0.shape[1]), pool.a[0], pool.b[0], tables)
    return _module(impl, x).lora_qkv(x, w0, bias, pool, tables)


def lora_conv2d(
    x: Tensor,
    w0: Tensor,
    bias: Tensor | None,
    pool: RankRowPool,
    tables: Tables,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    impl: Impl | None = None,
) -> Tensor:
    """The convolution with its rank rows: A is a kxk convolution to the rank, B is 1x1.

    Args:
        x: activations [rows, Cin, H, W].
        w0: base weight [N, Cin, kh, kw]; one group.
        bias: base bias [N] or None.
        pool: rank rows a [P, kh * kw * Cin], each laid out [kh][kw][Cin], b [P, N]; row 0 is zero. Input scales
            are [Cin].
        tables: rank rows and scales of every batch row; `tables.rows` equals x.shape[0].
        stride, padding, dilation: those of the base convolution.
        impl: as in `lora_linear`.

    Returns:
        [rows, N, H', W'] in the dtype of x.

    Raises:
        ValueError: where shapes or dtypes do not belong together.
    """
    if x.dim() != 4 or x.shape[1] != w0.shape[1]:
        raise ValueError(f"x is {list(x.shape)}, expected [rows, {w0.shape[1]}, H, W]")
    k = w0.shape[1] * w0.shape[2] * w0.shape[3]
    _check(x, k, (w0.shape[0], k), pool.a, pool.b, tables)
    return _module(impl, x).lora_conv2d(x, w0, bias, pool, tables, stride, padding, dilation)


def _module(impl: Impl | None, x: Tensor) -> Any:
    """The implementation's module; triton is imported when it is first used."""
    return import_module(_MODULES[impl or default_impl(x.device)])


def _check(x: Tensor, k_x: int, shape: tuple[int, ...], a: Tensor, b: Tensor, tables: Tables) -> None:
    n, k = shape
    if k_x != k:
        raise ValueError(f"x has {k_x} input features, the base weight has {k}")
    if a.shape[1:] != (k,) or b.shape[1:] != (n,) or len(a) != len(b):
        raise ValueError(f"pools are {list(a.shape)} and {list(b.shape)}, expected [P, {k}] and [P, {n}]")
    if tables.rows != x.shape[0]:
        raise ValueError(f"tables hold {tables.rows} rows, x has {x.shape[0]}")
    if not x.dtype == a.dtype == b.dtype:
        raise ValueError(f"x is {x.dtype}, pools are {a.dtype} and {b.dtype}")
