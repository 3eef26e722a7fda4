"""How much of the base an adapter changes: ||dW|| / ||W0||, by layer group.

Takes trained modules and the base's weights; gives a ratio a group. Frobenius norms, in float64; without dW itself
where there are no magnitudes: ||s up down||^2 = s^2 sum((up^T up) * (down down^T)).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loramux_train.output.trained import TrainedModule, scale_of

__all__ = ["GroupNorm", "group_norms", "group_of"]


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """ratio: of all modules together; largest: of the module where it is largest, by its path."""

    group: str
    modules: int
    ratio: float
    largest: float
    path: str


def group_norms(modules: Iterable[TrainedModule], weights: Mapping[str, Tensor]) -> tuple[GroupNorm, ...]:
    """weights: of the base, by the modules' paths in the layout."""
    groups: dict[str, list[tuple[str, float, float]]] = {}
    for module in modules:
        before = weights[module.full_path].detach().double().cpu()
        change, whole = _change(module, before), float(before.norm())
        groups.setdefault(group_of(module.full_path), []).append((module.full_path, change, whole))
    return tuple(_group(name, rows) for name, rows in sorted(groups.items()))


def group_of(path: str) -> str:
    """The layer group of a module, with the part of the UNet: `unet.attention, down`."""
    component, _, rest = path.partition(".")
    if component != "unet":
        return component
    side = next((side for side in ("down", "mid", "up") if rest.startswith(f"{side}_block")), "")
    return f"unet.{_kind(rest)}" + (f", {side}" if side else "")


def _kind(rest: str) -> str:
    if ".attn1." in rest or ".attn2." in rest:
        return "attention"
    if ".ff." in rest or rest.endswith((".proj_in", ".proj_out")):
        return "feed_forward"
    return "convolution" if "conv" in rest.rpartition(".")[2] else "rest"


def _group(name: str, rows: list[tuple[str, float, float]]) -> GroupNorm:
    change, whole = math.hypot(*(row[1] for row in rows)), math.hypot(*(row[2] for row in rows))
    path, most, of = max(rows, key=lambda row: _ratio(row[1], row[2]))
    return GroupNorm(name, len(rows), _ratio(change, whole), _ratio(most, of), path)


def _ratio(change: float, whole: float) -> float:
    return change / whole if whole else (math.inf if change else 0.0)


def _change(module: TrainedModule, before: Tensor) -> float:
    down, up = (t.detach().double().cpu().flatten(1) for t in (module.down, module.up))
    scale = scale_of(module)
    if module.magnitude is None:
        return abs(scale) * math.sqrt(max(0.0, float(((up.T @ up) * (down @ down.T)).sum())))
    flat = before.flatten(1)
    moved = flat + scale * (up @ down)
    m = module.magnitude.detach().double().cpu().flatten()
    return float((m[:, None] * moved / torch.linalg.vector_norm(moved, dim=1, keepdim=True) - flat).norm())
