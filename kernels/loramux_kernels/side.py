"""Side operations: deltas without cheap rank rows, added beside a layer in the batch rows that use them.

Takes fp32 factors, activations and which batch rows use which operation; adds to activations in place. Slow and exact:
nothing is done for batch rows that use none. It knows no adapter and no request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2

import torch
import torch.nn.functional as F
from torch import Tensor

from loramux_kernels.pool import balance
from loramux_kernels.tables import Entries

Where = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Stride, padding and dilation of a convolution."""


@dataclass(frozen=True, slots=True)
class Dense:
    """weight: as the layer's, [N, K] or [N, Cin, kh, kw]."""

    weight: Tensor

    @classmethod
    def of(cls, weight: Tensor, scale: float, like: Tensor) -> "Dense":
        """From an fp32 delta; its cast loses no more than that of the base weights themselves."""
        return cls((weight * scale).to(like))

    def dense(self) -> Tensor:
        """The delta."""
        return self.weight

    def linear(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        return F.linear(x, self.weight)

    def conv2d(self, x: Tensor, where: Where) -> Tensor:
        """[rows, Cin, H, W] to [rows, N, H', W']."""
        return F.conv2d(x, self.weight, None, *where)


@dataclass(frozen=True, slots=True)
class Kronecker:
    """w1 kron w2: w1 [a, c], w2 [b, d] or [b, d, kh, kw], with N = a b and K or Cin = c d."""

    w1: Tensor
    w2: Tensor

    @classmethod
    def of(cls, w1: Tensor, w2: Tensor, scale: float, like: Tensor) -> "Kronecker":
        """From fp32 sides, of which neither under- nor overflows in the cast."""
        w1, w2 = balance(w1, w2 * scale)
        return cls(w1.to(like), w2.to(like))

    def dense(self) -> Tensor:
        """The delta: [a b + b', c d + d'] is w1[a, c] w2[b', d']."""
        product = torch.einsum("ac,bd...->abcd...", self.w1, self.w2)
        return product.flatten(2, 3).flatten(0, 1)

    def linear(self, x: Tensor) -> Tensor:
        """W1 X W2^T of X [..., c, d]: never materialised."""
        inner = F.linear(x.unflatten(-1, (self.w1.shape[1], -1)), self.w2)
        return (self.w1 @ inner).flatten(-2)

    def conv2d(self, x: Tensor, where: Where) -> Tensor:
        """W2 convolves the c parts of the channels, W1 mixes them."""
        parts = x.unflatten(1, (self.w1.shape[1], -1))
        inner = F.conv2d(parts.flatten(0, 1), self.w2, None, *where).unflatten(0, parts.shape[:2])
        return torch.einsum("ac,rcbhw->rabhw", self.w1, inner).flatten(1, 2)


@dataclass(frozen=True, slots=True)
class Hadamard:
    """(p1 q1) * (p2 q2): p [N, r], q [r, K]; made dense when it is used. shape: of the layer's weight."""

    p1: Tensor
    q1: Tensor
    p2: Tensor
    q2: Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, p1: Tensor, q1: Tensor, p2: Tensor, q2: Tensor, scale: float, like: Tensor) -> "Hadamard":
        """From fp32 factors; by powers of two both products have entries of one size, and so have their factors."""
        p1 = p1 * scale
        one, two = float((p1 @ q1).abs().max()), float((p2 @ q2).abs().max())
        if one > 0 and two > 0:
            exponent = round((log2(two) - log2(one)) / 2)
            p1, p2 = p1 * 2.0**exponent, p2 * 2.0**-exponent
        (p1, q1), (p2, q2) = balance(p1, q1), balance(p2, q2)
        return cls(p1.to(like), q1.to(like), p2.to(like), q2.to(like), tuple(like.shape))

    def dense(self) -> Tensor:
        """The delta."""
        return ((self.p1 @ self.q1) * (self.p2 @ self.q2)).view(self.shape)

    def linear(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        return F.linear(x, self.dense())

    def conv2d(self, x: Tensor, where: Where) -> Tensor:
        """[rows, Cin, H, W] to [rows, N, H', W']."""
        return F.conv2d(x, self.dense(), None, *where)


@dataclass(frozen=True, slots=True)
class SideOperation:
    """What one layer adds to its product: outputs * delta(inputs * x) + bias.

    outputs [N], inputs [K or Cin]: fp32 scales of weight decomposition, of one axis at most; bias [N]. None: nothing.
    """

    delta: Dense | Kronecker | Hadamard | None
    outputs: Tensor | None = None
    inputs: Tensor | None = None
    bias: Tensor | None = None

    def linear(self, x: Tensor) -> Tensor:
        """fp32 [..., N] of x [..., K]."""
        if self.delta is None:
            return self._finish(None, ())
        return self._finish(self.delta.linear(_scaled(x, self.inputs, ())), ())

    def conv2d(self, x: Tensor, where: Where) -> Tensor:
        """fp32 [rows, N, H', W'] of x [rows, Cin, H, W], or [N, 1, 1] of a bias alone."""
        if self.delta is None:
            return self._finish(None, (1, 1))
        return self._finish(self.delta.conv2d(_scaled(x, self.inputs, (1, 1)), where), (1, 1))

    def _finish(self, product: Tensor | None, after: tuple[int, ...]) -> Tensor:
        if product is None:
            assert self.bias is not None
            return self.bias.float().view(-1, *after)
        y = product.float()
        if self.outputs is not None:
            y = y * self.outputs.view(-1, *after)
        return y if self.bias is None else y + self.bias.view(-1, *after)


@dataclass(frozen=True, slots=True)
class NormDelta:
    """Differences of a normalisation's weight and bias, [channels]; None: none."""

    weight: Tensor | None
    bias: Tensor | None

    def of(self, normalised: Tensor, after: tuple[int, ...]) -> Tensor:
        """fp32: normalised * weight + bias; after: ones for the dimensions behind the channels."""
        y = normalised.float()
        y = torch.zeros_like(y) if self.weight is None else y * self.weight.float().view(-1, *after)
        return y if self.bias is None else y + self.bias.float().view(-1, *after)


@dataclass(frozen=True, slots=True)
class Use:
    """Batch rows that use one side operation. rows: int64 [n]; weights: fp32 [n]; both on the device."""

    number: int
    rows: Tensor
    weights: Tensor


def uses(blends: Sequence[Entries], device: torch.device, *, alone: bool = False) -> tuple[Use, ...]:
    """From the (number of a side operation, weight) lists of every batch row.

    alone: each batch row by itself, so that its result does not depend on how many others use the same, not even in its
    last bits.
    """
    found: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for row, entries in enumerate(blends):
        for number, weight in entries:
            found.setdefault((number, row if alone else 0), []).append((row, weight))
    return tuple(
        Use(
            number,
            torch.tensor([row for row, _ in members], device=device),
            torch.tensor([weight for _, weight in members], device=device),
        )
        for (number, _), members in sorted(found.items())
    )


def add_linear(y: Tensor, x: Tensor, sides: Mapping[int, SideOperation], used: Sequence[Use]) -> Tensor:
    """y [rows, ..., N] with weight * side(x) added in the batch rows that use a side operation; in place."""
    for use in used:
        if (side := sides.get(use.number)) is not None:
            _add(y, side.linear(x[use.rows]), use)
    return y


def add_conv2d(y: Tensor, x: Tensor, sides: Mapping[int, SideOperation], used: Sequence[Use], where: Where) -> Tensor:
    """The same for a convolution: y [rows, N, H', W'], x [rows, Cin, H, W]."""
    for use in used:
        if (side := sides.get(use.number)) is not None:
            _add(y, side.conv2d(x[use.rows], where), use)
    return y


def add_norm(
    y: Tensor, normalised: Tensor, sides: Mapping[int, NormDelta], used: Sequence[Use], after: tuple[int, ...]
) -> Tensor:
    """The same for a normalisation; normalised: what its weight multiplies, of the shape of y."""
    for use in used:
        if (side := sides.get(use.number)) is not None:
            _add(y, side.of(normalised[use.rows], after), use)
    return y


def _add(y: Tensor, side: Tensor, use: Use) -> None:
    weights = use.weights.view(-1, *(1,) * (y.dim() - 1))
    y[use.rows] = (y[use.rows].float() + weights * side).to(y.dtype)


def _scaled(x: Tensor, scale: Tensor | None, after: tuple[int, ...]) -> Tensor:
    return x if scale is None else (x * scale.view(-1, *after)).to(x.dtype)
