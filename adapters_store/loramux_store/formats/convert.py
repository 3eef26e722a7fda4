"""A plan's tensors as canonical factors, streamed out one module at a time.

Takes a Plan and a sink; gives the compiled file's bytes to the sink, and warnings. Refuses values
that are not finite. Memory is bounded by the largest module. The only module here that imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

import torch
from torch import Tensor

from loramux_store.compiled_file import CompiledModule, header_bytes
from loramux_store.errors import Refused
from loramux_store.formats.plan import Plan, PlannedModule
from loramux_store.header import TensorEntry

__all__ = ["Sink", "as_bytes", "convert", "read_float32"]

Sink = Callable[[memoryview], object]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def convert(plan: Plan, sink: Sink) -> tuple[str, ...]:
    """Write the compiled file to the sink; the warnings that only values can give."""
    table = [CompiledModule.of(module.path, module.spec, module.raw.rank, module.scale) for module in plan.modules]
    sink(memoryview(header_bytes(table)))
    silent = 0
    with plan.container.path.open("rb") as handle:
        for module in plan.modules:
            a, b = _factors(handle, module)
            silent += not (a.any() and b.any())
            sink(as_bytes(a))
            sink(as_bytes(b))
    if silent == len(plan.modules):
        return ("all_zero: every module's B A is zero",)
    if silent:
        return (f"zero_modules: B A of {silent} of {len(plan.modules)} modules is zero",)
    return ()


def _factors(handle: BinaryIO, module: PlannedModule) -> tuple[Tensor, Tensor]:
    tensors, rank = module.raw.tensors, module.raw.rank
    down = read_float32(handle, tensors["down"], module.path)
    up = read_float32(handle, tensors["up"], module.path).reshape(-1, rank)
    if "mid" in tensors:
        down = _fold_mid(read_float32(handle, tensors["mid"], module.path), down.reshape(rank, -1))
        _check_finite(down, tensors["mid"], module.path)
    if module.spec.kind == "conv2d":
        # (r, Cin, kh, kw) or (r, Cin) of a 1x1, to [kh][kw][Cin]
        kernel = module.spec.shape[2:]
        down = down.reshape(rank, -1, *kernel).permute(0, 2, 3, 1)
    return down.reshape(rank, -1).contiguous(), up.T.contiguous()


def _fold_mid(mid: Tensor, down: Tensor) -> Tensor:
    """CP to plain: A'[m,i,k] = sum_n mid[m,n,k] down[n,i]; mid's first axis meets up."""
    return torch.einsum("mnhw,ni->mihw", mid.double(), down.double()).float()


def read_float32(handle: BinaryIO, entry: TensorEntry, module: str) -> Tensor:
    """A tensor of the file in float32, all of it finite."""
    handle.seek(entry.begin)
    raw = bytearray(handle.read(entry.end - entry.begin))
    stored = torch.frombuffer(raw, dtype=_DTYPES[entry.dtype]).reshape(entry.shape)
    # float8 has no isfinite of its own; float64 may be finite where float32 is not
    value = stored.float()
    _check_finite(value, entry, module)
    return value


def _check_finite(value: Tensor, entry: TensorEntry, module: str) -> None:
    if not torch.isfinite(value).all():
        raise Refused(
            "non_finite",
            f"{entry.name!r} of {module} holds NaN, Inf or a value outside float32",
            {"module": module, "key": entry.name},
        )


def as_bytes(tensor: Tensor) -> memoryview:
    """The numbers of a contiguous tensor."""
    return memoryview(tensor.numpy().data).cast("B")
