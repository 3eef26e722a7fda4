"""Does a module of a file fit a module of a layout?

Takes a RawModule and a ModuleSpec; gives how it fits, or what does not. Knows shapes only.
"""

from __future__ import annotations

from dataclasses import dataclass

from loramux_store.formats.read import RawModule
from loramux_store.layout import ModuleSpec

__all__ = ["Misfit", "fits_exactly", "misfit"]


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
    for role, shape in _shapes(raw, spec).items():
        entry = raw.tensors.get(role)
        if entry is None or _plain(entry.shape) != _plain(shape):
            got = entry.shape if entry else ()
            return Misfit(role, entry.name if entry else raw.tensors["down"].name, shape, got)
    if "mid" in raw.tensors and spec.kind == "linear":
        mid = raw.tensors["mid"]
        return Misfit("mid", mid.name, (), mid.shape)
    return None


def fits_exactly(raw: RawModule, spec: ModuleSpec) -> bool:
    """Whether the factors also have as many dimensions as the module's weight.

    That is what tells an SD1 proj_in (a convolution) from an SD2 one (linear).
    """
    return all(len(raw.tensors[role].shape) == len(shape) for role, shape in _shapes(raw, spec).items())


def _shapes(raw: RawModule, spec: ModuleSpec) -> dict[str, tuple[int, ...]]:
    rank = raw.rank
    if spec.kind == "linear":
        return {"down": (rank, spec.shape[1]), "up": (spec.shape[0], rank)}
    out, source, *kernel = spec.shape
    up = (out, rank, 1, 1)
    if "mid" in raw.tensors:
        return {"down": (rank, source, 1, 1), "mid": (rank, rank, *kernel), "up": up}
    return {"down": (rank, source, *kernel), "up": up}


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else shape
