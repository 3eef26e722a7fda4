"""The sum of deltas, exactly: rank rows one under the other, a dense delta where a module has others too.

Takes the Factors of one module with their weights; gives Factors. Refuses magnitudes, whose effect depends on the
base's weights. Knows no files.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loramux_store.errors import Inexpressible
from loramux_store.forms.factors import Factors

__all__ = ["Weighted", "concatenated"]

Weighted = tuple[Factors, float]
_BESIDE = ("bias", "weight", "m")


def concatenated(members: Sequence[Weighted]) -> Factors:
    """sum_i w_i delta_i as one module, fp32.

    Raises:
        Inexpressible: magnitudes in company, or at another weight than 1.
    """
    first, weight = members[0]
    if len(members) == 1 and weight == 1:
        return first
    for module, _ in members:
        if module.axis:
            raise Inexpressible(
                "a merge", module.path, "its magnitudes act on the base's weights: alone at weight 1 is all they can be"
            )
    parts, scale = _main([(module, w) for module, w in members if module.parts.keys() - {*_BESIDE}])
    for name in ("weight", "bias"):
        having = [w * module.parts[name].double() for module, w in members if name in module.parts]
        if having:
            parts[name] = torch.stack(having).sum(0).float()
    return Factors(first.path, first.spec, parts, scale)


def _main(members: Sequence[Weighted]) -> tuple[dict[str, Tensor], float]:
    """(parts, scale) of the sum of the weights' deltas."""
    if not members:
        return {}, 1.0
    if len(members) == 1:
        module, weight = members[0]
        return {name: part for name, part in module.parts.items() if name not in _BESIDE}, weight * module.scale
    if all(module.rank for module, _ in members):
        a = torch.cat([module.parts["a"] for module, _ in members])
        b = torch.cat([weight * module.scale * module.parts["b"].double() for module, weight in members])
        return {"a": a, "b": b.float()}, 1.0
    total = torch.zeros(members[0][0].spec.shape, dtype=torch.float64)
    for module, weight in members:
        if (delta := module.delta()) is not None:
            total += weight * delta
    return {"delta": total.float()}, 1.0
