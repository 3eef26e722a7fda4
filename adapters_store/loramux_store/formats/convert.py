"""A plan's tensors as canonical factors, streamed out one module at a time.

Takes a Plan and a sink; gives the compiled file's bytes to the sink, and warnings. Refuses values that are not finite.
Memory is bounded by the largest module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BufferedReader
from math import prod

import torch
from torch import Tensor

from loramux_store.compiled_file import header_bytes
from loramux_store.errors import Refused
from loramux_store.formats.algebra import factored, fold_core, fold_mid, hadamard_rows, kronecker_rows
from loramux_store.formats.kinds import kronecker_sides
from loramux_store.formats.plan import Plan, PlannedModule
from loramux_store.formats.tokens import PlannedEmbedding
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
    sink(memoryview(header_bytes(*plan.compiled)))
    silent = 0
    with plan.container.path.open("rb") as handle:
        for module in plan.modules:
            parts = _Reader(handle, module).parts()
            silent += not _acts(parts)
            for name, shape in module.operation.parts.items():
                sink(as_bytes(parts[name].reshape(shape)))
        zero = [each.embedding.trigger for each in plan.embeddings if not _write_vectors(handle, each, sink)]
    return (*_silent(silent, len(plan.modules)), *_zero_vectors(zero, bundled=bool(plan.modules)))


def _write_vectors(handle: BufferedReader, planned: PlannedEmbedding, sink: Sink) -> bool:
    """Whether one of them is not zero."""
    acts = False
    for encoder in planned.embedding.widths:
        vectors = read_float32(handle, planned.tensors[encoder], encoder)
        acts = acts or _any(vectors)
        sink(as_bytes(vectors))
    return acts


def _silent(silent: int, modules: int) -> tuple[str, ...]:
    if silent == 0:
        return ()
    if silent == modules:
        return ("all_zero: every module's delta is zero",)
    return (f"zero_modules: the delta of {silent} of {modules} modules is zero",)


def _zero_vectors(triggers: Sequence[str], *, bundled: bool) -> tuple[str, ...]:
    if not triggers:
        return ()
    if not bundled:
        return ("all_zero: every vector is zero",)
    return (f"zero_vectors: every vector is zero of {', '.join(map(repr, triggers[:5]))}",)


class _Reader:
    """One module's tensors of the file, and what they are in the compiled file, fp32."""

    def __init__(self, handle: BufferedReader, module: PlannedModule) -> None:
        self._handle = handle
        self._module = module
        self._tensors = module.raw.tensors
        self._of_kind = {"lora": self._lora, "loha": self._loha, "lokr": self._lokr, "full": self._full}

    def parts(self) -> dict[str, Tensor]:
        """By the names of the compiled file; more than it wants may be among them."""
        kind = self._module.raw.kind
        parts = self._norm() if kind == "norm" else self._of_kind.get(kind, dict[str, Tensor])()
        if "bias" in self._module.operation.parts and "bias" not in parts:
            parts["bias"] = self._bias()
        for role in ("magnitude", "dora_scale"):
            if role in self._tensors:
                parts["m"] = self._read(role)
        rounded = {name: part.float() for name, part in parts.items()}
        first = next(iter(self._tensors.values()))
        for name, part in rounded.items():
            if part is not parts[name]:  # what is read as float32 is finite
                _check_finite(part, first, self._module.path, f"the factor {name} made of ")
        return rounded

    def _lora(self) -> dict[str, Tensor]:
        if "mid" not in self._tensors and self._module.operation.name == "rows":  # stays as it is: no need of float64
            return self._rows_or_dense(self._read32("down").flatten(1), self._read32("up").flatten(1))
        down, up = self._read("down").flatten(1), self._read("up").flatten(1)
        if "mid" in self._tensors:
            down = fold_mid(self._read("mid"), down)
        return self._rows_or_dense(down, up)

    def _loha(self) -> dict[str, Tensor]:
        (p1, q1), (p2, q2) = (
            fold_core(self._maybe(f"hada_t{side}"), self._read(f"hada_w{side}_a"), self._read(f"hada_w{side}_b"))
            for side in "12"
        )
        if self._module.operation.name == "hadamard":
            return {"p1": p1, "q1": q1, "p2": p2, "q2": q2}
        if self._module.operation.name == "dense":
            return {"delta": (p1 @ q1) * (p2 @ q2)}
        return self._rows_or_dense(*hadamard_rows(p1, q1, p2, q2))

    def _lokr(self) -> dict[str, Tensor]:
        sides = kronecker_sides(self._tensors)
        first, second = (self._side(name, side.rank) for name, side in zip("12", sides, strict=True))
        if self._module.operation.name == "kronecker":
            return {"w1": _whole(first), "w2": _whole(second)}
        narrow = [
            pair if isinstance(pair, tuple) and pair[1].shape[0] == side.width else factored(_whole(pair))
            for pair, side in zip((first, second), sides, strict=True)
        ]
        return self._rows_or_dense(*kronecker_rows(narrow[0], narrow[1]))

    def _side(self, name: str, rank: int | None) -> Tensor | tuple[Tensor, Tensor]:
        if rank is None:
            return self._read(f"lokr_w{name}").flatten(1)
        return fold_core(self._maybe(f"lokr_t{name}"), self._read(f"lokr_w{name}_a"), self._read(f"lokr_w{name}_b"))

    def _full(self) -> dict[str, Tensor]:
        return {"delta": self._read("diff")}

    def _norm(self) -> dict[str, Tensor]:
        roles = {"w_norm": "weight", "b_norm": "bias", "diff": "weight", "diff_b": "bias"}
        return {part: self._read(role) for role, part in roles.items() if role in self._tensors}

    def _bias(self) -> Tensor:
        """diff_b is a difference as it stands, a bias of PEFT's B has the scale of its factors."""
        total = torch.zeros((), dtype=torch.float64)
        if "diff_b" in self._tensors:
            total = total + self._read("diff_b")
        if "up_bias" in self._tensors:
            total = total + self._module.scale * self._read("up_bias")
        return total

    def _rows_or_dense(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        """A [r, K] and B [N, r] as rows, or as what the operation wants."""
        if self._module.operation.name == "dense":
            return {"delta": b @ a}
        if self._module.spec.kind == "conv2d":  # [Cin][kh][kw] to [kh][kw][Cin]
            a = a.reshape(-1, *self._module.spec.shape[1:]).permute(0, 2, 3, 1)
        return {"a": a, "b": b.T}

    def _maybe(self, role: str) -> Tensor | None:
        return self._read(role) if role in self._tensors else None

    def _read(self, role: str) -> Tensor:
        """A tensor of the file in float64, all of it finite in float32."""
        return self._read32(role).double()

    def _read32(self, role: str) -> Tensor:
        return read_float32(self._handle, self._tensors[role], self._module.path)


def read_float32(handle: BufferedReader, entry: TensorEntry, module: str) -> Tensor:
    """A tensor of the file in float32, all of it finite."""
    stored = torch.empty(prod(entry.shape), dtype=_DTYPES[entry.dtype])
    handle.seek(entry.begin)
    handle.readinto(stored.view(torch.uint8).numpy().data)
    stored = stored.reshape(entry.shape)
    # float8 has no isfinite of its own; float64 may be finite where float32 is not
    value = stored.float()
    _check_finite(value, entry, module)
    return value


def _whole(side: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return side if isinstance(side, Tensor) else side[0] @ side[1]


def _acts(parts: dict[str, Tensor]) -> bool:
    """Whether a module does anything: a product is zero where one factor is; magnitudes always do something."""
    if "m" in parts or any(_any(parts[name]) for name in ("bias", "weight", "delta") if name in parts):
        return True
    factors = [part for name, part in parts.items() if name not in ("bias", "weight", "delta")]
    return bool(factors) and all(_any(part) for part in factors)


def _any(part: Tensor) -> bool:
    """Whether one number is not zero; mostly one of the first row."""
    return bool(part[:1].any()) or bool(part.any())


def _check_finite(value: Tensor, entry: TensorEntry, module: str, what: str = "") -> None:
    # one pass; a NaN is the least and the greatest of whatever it is among
    if value.numel() and not all(map(torch.isfinite, torch.aminmax(value))):
        raise Refused(
            "non_finite",
            f"{what}{entry.name!r} of {module} holds NaN, Inf or a value outside float32",
            {"module": module, "key": entry.name},
        )


def as_bytes(tensor: Tensor) -> memoryview:
    """The numbers of a tensor."""
    return memoryview(tensor.contiguous().numpy().data).cast("B")
