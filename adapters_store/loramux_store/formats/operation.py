"""How a module's delta is applied: as rank rows where those are cheap, else by a side operation.

Takes a RawModule and the ModuleSpec it fits; gives an Operation: its rank rows, and the shapes that the compiled file
holds for it. Knows no tensor values.

Of a LoHa or LoKr cheap are at most MAX_CHEAP rank rows that hold fewer numbers than the delta itself. A LoRA has no
other form than its own rows, so it takes them up to MAX_ROWS in any case. What is left is exact in its own form: a
Kronecker product in its two sides, a Hadamard product in its four factors or dense, whichever is smaller, a full
difference dense. What a version is applied as is decided when it is pushed, and stays: its record says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from loramux_store.formats.kinds import kronecker_sides
from loramux_store.formats.read import RawModule
from loramux_store.layout import ModuleSpec

__all__ = ["MAX_ROWS", "Axis", "Name", "Operation", "operation_of"]

MAX_ROWS = 512
"""Largest total rank of one batch row in a layer group: more rows than this could never be used."""

MAX_CHEAP = 64
"""Rank rows of a LoHa or LoKr: what a LoRA of a large rank has, and an eighth of what a blend may have. Rows are more
numbers than its own factors, half the dimension times as many of a LoHa, the square of the factor of a LoKr; without a
bound that is its own, a file of 11 MB became rows of 5 GB beside which no other adapter had room."""

Name = Literal["rows", "kronecker", "hadamard", "dense", "bias", "norm"]
Axis = Literal["", "output", "input"]


@dataclass(frozen=True, slots=True)
class Operation:
    """rank: rank rows, 0 for side operations; parts: {name: shape} of the compiled file; axis: of decomposition."""

    name: Name
    rank: int
    parts: dict[str, tuple[int, ...]]
    axis: Axis

    @property
    def side_values(self) -> int:
        """Numbers that a side operation keeps on the device."""
        values = sum(prod(shape) for part, shape in self.parts.items() if part not in ("a", "b", "m"))
        scaled = self.axis and self.name in ("kronecker", "hadamard", "dense")
        return values + (prod(self.parts["m"]) if scaled else 0)

    @property
    def text(self) -> str:
        """For the report: what is done, `rows+bias` where a bias goes with it."""
        return f"{self.name}+bias" if "bias" in self.parts and self.name not in ("bias", "norm") else self.name


def operation_of(raw: RawModule, spec: ModuleSpec, axis: Axis, *, as_rows: bool | None = None) -> Operation:
    """The operation of a module that fits its spec. as_rows: whether a LoHa or LoKr becomes rank rows, where that is
    decided already."""
    name, rank, parts = _main(raw, spec, as_rows)
    if axis:
        parts["m"] = (spec.shape[0 if axis == "output" else 1],)
    if raw.kind not in ("norm", "bias") and ("diff_b" in raw.tensors or "up_bias" in raw.tensors):
        parts["bias"] = (spec.shape[0],)
    return Operation(name, rank, parts, axis)


def _main(raw: RawModule, spec: ModuleSpec, as_rows: bool | None) -> tuple[Name, int, dict[str, tuple[int, ...]]]:
    tensors = raw.tensors
    if raw.kind == "norm":
        given = {"weight": ("w_norm", "diff"), "bias": ("b_norm", "diff_b")}
        return "norm", 0, {part: spec.shape for part, roles in given.items() if any(r in tensors for r in roles)}
    if raw.kind == "bias":
        return "bias", 0, {"bias": (spec.shape[0],)}
    if raw.kind == "lora":
        rank = tensors["down"].shape[0]
        return _rows(rank, spec) if rank <= MAX_ROWS else _dense(spec)
    if raw.kind == "loha":
        return _hadamard(raw, spec, as_rows)
    if raw.kind == "lokr":
        return _kronecker(raw, spec, as_rows)
    return _dense(spec)


def _rows(rank: int, spec: ModuleSpec) -> tuple[Name, int, dict[str, tuple[int, ...]]]:
    return "rows", rank, {"a": (rank, prod(spec.shape[1:])), "b": (rank, spec.shape[0])}


def _dense(spec: ModuleSpec) -> tuple[Name, int, dict[str, tuple[int, ...]]]:
    return "dense", 0, {"delta": spec.shape}


def _hadamard(raw: RawModule, spec: ModuleSpec, as_rows: bool | None) -> tuple[Name, int, dict[str, tuple[int, ...]]]:
    """With cores the outer factors lie transposed; either way the first rank is that of the outer one."""
    axis = 0 if "hada_t1" in raw.tensors else 1
    one, two = (raw.tensors[f"hada_w{side}_a"].shape[axis] for side in "12")
    if _cheap(one * two, spec) if as_rows is None else as_rows:
        return _rows(one * two, spec)
    n, k = spec.shape[0], prod(spec.shape[1:])
    if (one + two) * (n + k) >= n * k:
        return _dense(spec)
    return "hadamard", 0, {"p1": (n, one), "q1": (one, k), "p2": (n, two), "q2": (two, k)}


def _kronecker(raw: RawModule, spec: ModuleSpec, as_rows: bool | None) -> tuple[Name, int, dict[str, tuple[int, ...]]]:
    first, second = kronecker_sides(raw.tensors)
    rank = first.width * second.width
    if _cheap(rank, spec) if as_rows is None else as_rows:
        return _rows(rank, spec)
    kernel = spec.shape[2:]
    inner = (second.rows, second.columns // prod(kernel), *kernel)
    return "kronecker", 0, {"w1": (first.rows, first.columns), "w2": inner}


def _cheap(rank: int, spec: ModuleSpec) -> bool:
    n, k = spec.shape[0], prod(spec.shape[1:])
    return rank <= MAX_CHEAP and rank * (n + k) < n * k
