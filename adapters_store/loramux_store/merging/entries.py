"""What is merged, and how.

Takes text and options; gives checked values, or InvalidArgument. Knows no tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from loramux_store.errors import InvalidArgument
from loramux_store.formats.kinds import MAX_RANK
from loramux_store.names import parse_ref

__all__ = ["METHODS", "Entry", "Method", "Name", "Sign", "parse_entry"]

Name = Literal["concat", "svd", "linear", "ties", "dare_ties", "dare_linear", "magnitude_prune"]
Sign = Literal["total", "frequency"]
METHODS: tuple[Name, ...] = get_args(Name)
_PRUNING = ("ties", "dare_ties", "dare_linear", "magnitude_prune")


@dataclass(frozen=True, slots=True)
class Entry:
    """An adapter, as `name`, `name@3` or `name@alias`, and its weight."""

    ref: str
    weight: float


@dataclass(frozen=True, slots=True)
class Method:
    """rank: of svd; density: part of the numbers that pruning keeps; sign: how ties elects one; seed: of dare."""

    name: Name = "concat"
    rank: int | None = None
    density: float | None = None
    sign: Sign = "total"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what the way does not use, and the lack of what it needs."""
        if (self.rank is not None) != (self.name == "svd"):
            raise InvalidArgument("rank", self.rank, "a rank with svd, none with any other method")
        if self.rank is not None and not 1 <= self.rank <= MAX_RANK:
            raise InvalidArgument("rank", self.rank, f"1 to {MAX_RANK}")
        if (self.density is not None) != (self.name in _PRUNING):
            raise InvalidArgument("density", self.density, f"a density with {', '.join(_PRUNING)}, none with others")
        if self.density is not None and not 0 < self.density < 1:
            raise InvalidArgument("density", self.density, "more than 0 and less than 1")


def parse_entry(text: str) -> Entry:
    """`name[@version]=weight`."""
    ref, _, number = text.partition("=")
    parse_ref(ref)
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise InvalidArgument("entry", text, "NAME[@VERSION]=WEIGHT with a finite weight, such as ink=0.8")
    return Entry(ref, weight)
