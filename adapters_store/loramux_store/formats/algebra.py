"""Deltas in other factors: the formulas of LoHa, LoKr and CP, exact in float64.

Takes float64 tensors; gives float64 tensors. W is a weight [N, K] with a convolution's K laid out [Cin][kh][kw], A is
[r, K], B is [N, r]. Knows no files and no layouts.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["factored", "fold_core", "fold_mid", "hadamard_rows", "kronecker_rows"]


def fold_mid(mid: Tensor, down: Tensor) -> Tensor:
    """CP to plain: A'[m,i,k] = sum_n mid[m,n,k] down[n,i]; mid's first axis meets up. [r, Cin * kh * kw]."""
    return torch.einsum("mnhw,ni->mihw", mid, down).flatten(1)


def fold_core(core: Tensor | None, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors (P [N, r], Q [r, K]) of a stored pair; beside a core (Tucker) the first lies transposed."""
    return (a, b.flatten(1)) if core is None else (a.T, fold_mid(core, b))


def hadamard_rows(p1: Tensor, q1: Tensor, p2: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
    """(A, B) of (P1 Q1) * (P2 Q2): every pair of rows multiplied (row-wise Khatri-Rao), rank r1 r2."""
    a = (q1[:, None, :] * q2[None, :, :]).flatten(0, 1)
    b = (p1[:, :, None] * p2[:, None, :]).flatten(1)
    return a, b


def kronecker_rows(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(A, B) of (P U) kron (Q V) with first = (P, U) and second = (Q, V): kron(P, Q) kron(U, V)."""
    # copies: a transposed row passes for contiguous, but torch.kron cannot view it
    (p, u), (q, v) = (
        tuple(factor.clone(memory_format=torch.contiguous_format) for factor in side) for side in (first, second)
    )
    return torch.kron(u, v), torch.kron(p, q)


def factored(whole: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix as two factors, the smaller of which is the unit matrix."""
    rows, columns = whole.shape
    if rows <= columns:
        return torch.eye(rows, dtype=whole.dtype), whole
    return whole, torch.eye(columns, dtype=whole.dtype)
