"""Does a module of a file fit a module of a layout?

Takes a RawModule and a ModuleSpec; gives how it fits, or what does not, and the axis of its magnitudes. Knows shapes
only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from loramux_store.formats.kinds import kronecker_sides
from loramux_store.formats.operation import Axis
from loramux_store.formats.read import RawModule
from loramux_store.header import TensorEntry
from loramux_store.layout import ModuleSpec

__all__ = ["Misfit", "fits_exactly", "magnitude_axis", "misfit"]

_BIASES = ("diff_b", "up_bias", "w_norm", "b_norm")


@dataclass(frozen=True, slots=True)
class Misfit:
    """A factor whose shape is not the module's."""

    role: str
    key: str
    expected: tuple[int, ...]
    got: tuple[int, ...]


def misfit(raw: RawModule, spec: ModuleSpec) -> Misfit | None:
    """The first factor that does not belong to the module.

    A 1x1 convolution and a linear layer are the same map: trailing 1, 1 may be there or not.
    """
    if raw.kind != "bias" and (raw.kind == "norm") != (spec.kind == "norm"):
        entry = next(iter(raw.tensors.values()))
        return Misfit(_role_of(raw, entry), entry.name, spec.shape, entry.shape)
    for role, shape in _shapes(raw, spec).items():
        entry = raw.tensors[role]
        if _plain(entry.shape) != _plain(shape):
            return Misfit(role, entry.name, shape, entry.shape)
    return next(_other_misfits(raw, spec), None)


def fits_exactly(raw: RawModule, spec: ModuleSpec) -> bool:
    """Whether the factors also have as many dimensions as the module's weight.

    That is what tells an SD1 proj_in (a convolution) from an SD2 one (linear).
    """
    told = [role for role in ("down", "up", "diff", "lokr_w2", "dora_scale") if role in raw.tensors]
    shapes = [len(raw.tensors[role].shape) == len(spec.shape) for role in told if len(raw.tensors[role].shape) > 1]
    magnitude = raw.tensors.get("magnitude")
    return all(shapes) and (magnitude is None or (len(magnitude.shape) == 4) == (len(spec.shape) == 4))


def magnitude_axis(raw: RawModule, spec: ModuleSpec) -> Axis:
    """The axis of the module's magnitudes, "" without any.

    PEFT's are of the outputs, whatever their shape (a convolution's is [1, o, 1, 1]); LyCORIS' say it by the place of
    their 1, and are of the outputs where they have one dimension.
    """
    if "magnitude" in raw.tensors:
        return "output"
    if "dora_scale" not in raw.tensors:
        return ""
    shape = raw.tensors["dora_scale"].shape
    return "output" if len(shape) == 1 or shape[1] == 1 else "input"


def _shapes(raw: RawModule, spec: ModuleSpec) -> dict[str, tuple[int, ...]]:
    """Expected shapes of the tensors whose shape the module fixes."""
    out, inputs, kernel = spec.shape[0], spec.shape[1:2], spec.shape[2:]
    ones = (1,) * len(kernel)
    shapes: dict[str, tuple[int, ...]] = {role: (out,) for role in _BIASES if role in raw.tensors}
    if raw.kind == "lora":
        rank = raw.tensors["down"].shape[0]
        inner = ones if "mid" in raw.tensors else kernel
        shapes |= {"down": (rank, *inputs, *inner), "up": (out, rank, *ones)}
        shapes |= {"mid": (rank, rank, *kernel)} if "mid" in raw.tensors else {}
    elif raw.kind == "full" or (raw.kind == "norm" and "diff" in raw.tensors):
        shapes["diff"] = spec.shape
    elif raw.kind == "loha":
        shapes |= _hadamard(raw, spec)
    elif "lokr_t2" in raw.tensors:
        core = raw.tensors["lokr_t2"].shape
        shapes["lokr_t2"] = (*core[:2], *kernel)
    return shapes


def _hadamard(raw: RawModule, spec: ModuleSpec) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for side in "12":
        a, b, core = f"hada_w{side}_a", f"hada_w{side}_b", f"hada_t{side}"
        rank = raw.tensors[b].shape[0]
        if core in raw.tensors:
            outer = raw.tensors[a].shape[0]
            shapes |= {
                core: (outer, rank, *spec.shape[2:]), a: (outer, spec.shape[0]), b: (rank, spec.shape[1])
            }  # fmt: skip
        else:
            inner = spec.shape[1:] if len(raw.tensors[b].shape) == 4 else (prod(spec.shape[1:]),)
            shapes |= {a: (spec.shape[0], raw.tensors[a].shape[1]), b: (rank, *inner)}
    return shapes


def _other_misfits(raw: RawModule, spec: ModuleSpec) -> Iterator[Misfit]:
    """What no single shape says: products of sides, cores beside linear layers, magnitudes of either axis."""
    for role in ("mid", "hada_t1", "hada_t2", "lokr_t2"):
        if role in raw.tensors and spec.kind != "conv2d":
            yield Misfit(role, raw.tensors[role].name, (), raw.tensors[role].shape)
    if raw.kind == "lokr":
        first, second = kronecker_sides(raw.tensors)
        got = (first.rows * second.rows, first.columns * second.columns)
        expected = (spec.shape[0], prod(spec.shape[1:]))
        whole = raw.tensors.get("lokr_w2") or raw.tensors["lokr_w2_b"]
        cut = second.columns % prod(spec.shape[2:]) or (len(whole.shape) == 4 and whole.shape[2:] != _kernel(spec))
        if got != expected or cut:
            yield Misfit("lokr", whole.name, expected, got)
    for role in ("magnitude", "dora_scale"):
        if role in raw.tensors and (fault := _magnitude_misfit(role, raw, spec)):
            yield fault


def _magnitude_misfit(role: str, raw: RawModule, spec: ModuleSpec) -> Misfit | None:
    """One number a channel and no other dimension but ones; not under both names, not of a normalisation."""
    entry = raw.tensors[role]
    size = spec.shape[0 if spec.kind == "norm" or magnitude_axis(raw, spec) == "output" else 1]
    wide = [width for width in entry.shape if width != 1]
    twice = "magnitude" in raw.tensors and "dora_scale" in raw.tensors
    if spec.kind != "norm" and not twice and wide == ([] if size == 1 else [size]):
        return None
    return Misfit(role, entry.name, (size,), entry.shape)


def _kernel(spec: ModuleSpec) -> tuple[int, ...]:
    return spec.shape[2:] or (1, 1)


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else shape


def _role_of(raw: RawModule, entry: TensorEntry) -> str:
    return next(role for role, other in raw.tensors.items() if other is entry)
