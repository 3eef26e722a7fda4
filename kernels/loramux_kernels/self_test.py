"""Whether an implementation computes the right thing on a device, in a second or two.

Takes an implementation, a device and a dtype; says what is wrong. It is what a server runs before it serves with
kernels that were compiled for a card its makers may never have seen. It knows no adapter and no model.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from loramux_kernels.ops import Impl, lora_conv2d, lora_linear, lora_qkv
from loramux_kernels.pool import FusedPool, RankRowPool
from loramux_kernels.tables import TableBank, Tables

_TOKENS, _K, _N, _CIN, _ROWS = 77, 128, 96, 16, 64
_ENTRIES = (tuple((row, 0.5) for row in range(2, 26)), (), tuple((row, -1.5) for row in (40, 7, 31)))
_ALLOWED = 16  # times the unit of the dtype: far above rounding, far below a wrong term


def self_test(impl: Impl, device: torch.device, dtype: torch.dtype) -> None:
    """Runs each operation once on random data with three different blends against the reference in float64.

    Raises:
        ValueError: where an operation gives something else; names it. What a compiler or a driver raises where the
            implementation cannot run at all goes through.
    """
    for name, got, want in _cases(impl, device, dtype):
        error = float((got.double().cpu() - want).norm() / want.norm())
        if not error <= _ALLOWED * torch.finfo(dtype).eps:
            raise ValueError(f"{name} is wrong on {device} in {dtype}: relative error {error:.2g} against float64")


def _cases(impl: Impl, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(operation, what it gives, float64 on the CPU)."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5).to(dtype)

    here, there = _tables(torch.device("cpu")), _tables(device)
    x, w0, bias = random(3, _TOKENS, _K) * _K**0.5, random(3 * _N, _K), random(3 * _N)
    a, b = random(3, _ROWS, _K), random(3, _ROWS, _N)
    wide, on_device = _fused(a.double(), b.double()), _fused(a.to(device), b.to(device))
    want = lora_qkv(x.double(), w0.double(), bias.double(), wide, here, impl="reference")
    x, w0, bias = x.to(device), w0.to(device), bias.to(device)
    yield "lora_qkv", lora_qkv(x, w0, bias, on_device, there, impl=impl), want
    got = lora_linear(x, w0[:_N], bias[:_N], on_device.parts[0], there, impl=impl)
    yield "lora_linear", got, want[..., :_N]
    x, w0, bias = random(3, _CIN, 9, 7) * 3, random(_N, _CIN, 3, 3), random(_N)
    a, b = random(_ROWS, 9 * _CIN), random(_ROWS, _N)
    a[0] = b[0] = 0
    pool = RankRowPool(a.double(), b.double())
    want = lora_conv2d(x.double(), w0.double(), bias.double(), pool, here, padding=(1, 1), impl="reference")
    x, w0, bias = x.to(device), w0.to(device), bias.to(device)
    pool = RankRowPool(a.to(device), b.to(device))
    yield "lora_conv2d", lora_conv2d(x, w0, bias, pool, there, padding=(1, 1), impl=impl), want


def _tables(device: torch.device) -> Tables:
    tables = TableBank(device).write(_ENTRIES)
    assert tables is not None
    return tables


def _fused(a: Tensor, b: Tensor) -> FusedPool:
    parts, size, k = a.shape
    fused = FusedPool(parts, size, k, b.shape[2], dtype=a.dtype, device=a.device)
    fused.a[:, 1:], fused.b[:, 1:] = a[:, 1:], b[:, 1:]  # row 0 stays zero
    return fused
