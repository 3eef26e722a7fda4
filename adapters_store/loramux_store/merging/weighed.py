"""PEFT's ways of merging: linear, ties, dare_ties, dare_linear and magnitude_prune, with PEFT's own functions.

Takes Factors of one module with their weights; gives Factors. As in PEFT, A and B are merged each for itself, with the
square root of weight times scale: what comes out is not the sum of the deltas. Random masks are drawn from torch's
generator. Knows no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from loramux_store.errors import Inexpressible
from loramux_store.forms.factors import Factors, conv_rows, flat_rows
from loramux_store.merging.entries import Method
from loramux_store.merging.exact import Weighted

__all__ = ["weighed"]


def weighed(members: Sequence[Weighted], method: Method) -> Factors:
    """One module, of the rank that all have.

    Raises:
        Inexpressible: no rank rows, or more than those, or different ranks.
        ModuleNotFoundError: PEFT is not installed.
    """
    first = members[0][0]
    for module, _ in members:
        if set(module.parts) != {"a", "b"}:
            raise Inexpressible(method.name, first.path, "it takes rank rows only; concat and svd take any delta")
    ranks = sorted({module.rank for module, _ in members})
    if len(ranks) > 1:
        raise Inexpressible(
            method.name, first.path, f"it needs one rank, here are {ranks}; concat and svd take any ranks"
        )
    factors = [(weight * module.scale, module) for module, weight in members]
    roots = [math.sqrt(abs(factor)) for factor, _ in factors]
    signed = [math.copysign(root, factor) for root, (factor, _) in zip(roots, factors, strict=True)]
    # masks are drawn in the order of a file's tensors, which is PEFT's
    a = _task([conv_rows(module.parts["a"], module.spec).contiguous() for _, module in factors], signed, method)
    b = _task([module.parts["b"].T.contiguous() for _, module in factors], roots, method)
    return Factors(first.path, first.spec, {"a": flat_rows(a, first.spec), "b": b.T.contiguous()}, 1.0)


def _task(tensors: list[Tensor], weights: list[float], method: Method) -> Tensor:
    # here, not above: PEFT takes seconds to import, and only these ways need it
    from peft.utils import merge_utils

    told = torch.tensor(weights)
    if method.name == "linear":
        return merge_utils.task_arithmetic(tensors, told)
    density = method.density or 0.0
    if method.name == "ties":
        return merge_utils.ties(tensors, told, density, method.sign)
    if method.name == "dare_ties":
        return merge_utils.dare_ties(tensors, told, density, method.sign)
    if method.name == "dare_linear":
        return merge_utils.dare_linear(tensors, told, density)
    return merge_utils.magnitude_prune(tensors, told, density)
