"""Rank rows on the device: who owns which row numbers, the arrays that hold them, and the tables
that say which rows a batch row uses.

Takes sizes, row contents and (row numbers, scales) of every batch row; gives pool arrays and tables.
It knows no adapter and no layer name.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

R_CLASSES = (0, 16, 32, 64, 128, 256, 512)
"""Widths a table may have. Few, so that a captured graph is reused by most batches."""

MAX_ROW_RANK = R_CLASSES[-1]
"""Largest total rank of one batch row in one layer group."""


class PoolFull(Exception):
    """Not enough free rank rows."""

    def __init__(self, wanted: int, free: int) -> None:
        super().__init__(f"{wanted} rank rows wanted, {free} free")
        self.wanted = wanted
        self.free = free


def rank_class(rank: int) -> int:
    """Smallest class that holds `rank` rows.

    Raises:
        ValueError: for a rank above `MAX_ROW_RANK`.
    """
    for width in R_CLASSES:
        if rank <= width:
            return width
    raise ValueError(f"total rank {rank}, at most {MAX_ROW_RANK}")


class RowAllocator:
    """Hands out row numbers 1 .. size - 1; row 0 stays the zero row."""

    def __init__(self, size: int) -> None:
        if size < 2:
            raise ValueError(f"pool size {size}, expected at least 2")
        self.size = size
        self._free = list(range(1, size))  # always sorted

    @property
    def free(self) -> int:
        """Number of rows nobody owns."""
        return len(self._free)

    def take(self, count: int) -> tuple[int, ...]:
        """`count` rows, adjoining where such a run exists (its gather is then a view).

        Raises:
            PoolFull: and nothing was taken.
        """
        if count > len(self._free):
            raise PoolFull(count, len(self._free))
        start = self._run(count)
        taken = self._free[start : start + count]
        del self._free[start : start + count]
        return tuple(taken)

    def give_back(self, rows: Sequence[int]) -> None:
        """Frees rows that `take` handed out."""
        self._free = sorted({*self._free, *rows})

    def _run(self, count: int) -> int:
        """Index in the free list of the first adjoining run of `count` rows, or 0."""
        free = self._free
        for start in range(len(free) - count + 1):
            if count == 0 or free[start + count - 1] - free[start] == count - 1:
                return start
        return 0


class RankRowPool:
    """A_pool[P, K] and B_pool[P, N] of one layer; row 0 is zero."""

    def __init__(self, size: int, k: int, n: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.a = torch.zeros(size, k, dtype=dtype, device=device)
        self.b = torch.zeros(size, n, dtype=dtype, device=device)

    def write(self, rows: Sequence[int], a: Tensor, b: Tensor, scale: float) -> None:
        """Writes fp32 factors a [r, K] and b [r, N] into the first r of `rows`, zeros into the rest.

        `scale` (alpha / rank) goes into both factors, split by a power of two that balances their
        largest magnitudes before the cast, so that neither under- nor overflows in 16 bits.
        """
        index = torch.tensor(rows, dtype=torch.long, device=self.a.device)
        r = a.shape[0]
        a, b = balance(a.float(), b.float() * scale)
        self.a[index[:r]] = a.to(self.a)
        self.b[index[:r]] = b.to(self.b)
        self.clear(rows[r:])

    def clear(self, rows: Sequence[int]) -> None:
        """Writes zeros into `rows`."""
        index = torch.tensor(rows, dtype=torch.long, device=self.a.device)
        self.a[index] = 0
        self.b[index] = 0


def balance(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(2^k a, 2^-k b) with largest magnitudes within a factor of two; exact in floating point."""
    high_a, high_b = float(a.abs().max()), float(b.abs().max())
    if high_a == 0 or high_b == 0:
        return a, b
    exponent = round((math.log2(high_b) - math.log2(high_a)) / 2)
    return a * 2.0**exponent, b * 2.0**-exponent


Entries = Sequence[tuple[int, float]]
"""(rank row, scale) pairs of one batch row in one layer group."""


@dataclass(frozen=True, slots=True)
class Tables:
    """Which rank rows every batch row uses, in one layer group.

    idx: int32 [rows, R]; scale: fp32 [rows, R]; nrank: int32 [rows], used entries of each row. Entries
    from nrank on are row 0 with scale 0.
    """

    idx: Tensor
    scale: Tensor
    nrank: Tensor

    @property
    def rows(self) -> int:
        """Number of batch rows."""
        return self.idx.shape[0]


class TableBank:
    """Static tables, one set for each (rows, R class), rewritten in place between forwards."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tables: dict[tuple[int, int], Tables] = {}

    def write(self, rows: Sequence[Entries]) -> Tables | None:
        """Tables of one (rank row, scale) list a batch row; None where all lists are empty.

        Raises:
            ValueError: where a list is longer than `MAX_ROW_RANK`.
        """
        width = rank_class(max((len(row) for row in rows), default=0))
        if width == 0:
            return None
        pad = [(0, 0.0)] * width
        padded = [[*row, *pad[len(row) :]] for row in rows]
        tables = self._of(len(rows), width)
        tables.idx.copy_(torch.tensor([[r for r, _ in row] for row in padded], dtype=torch.int32))
        tables.scale.copy_(torch.tensor([[s for _, s in row] for row in padded]))
        tables.nrank.copy_(torch.tensor([len(row) for row in rows], dtype=torch.int32))
        return tables

    def _of(self, rows: int, width: int) -> Tables:
        if (rows, width) not in self._tables:
            self._tables[rows, width] = Tables(
                idx=torch.zeros(rows, width, dtype=torch.int32, device=self._device),
                scale=torch.zeros(rows, width, dtype=torch.float32, device=self._device),
                nrank=torch.zeros(rows, dtype=torch.int32, device=self._device),
            )
        return self._tables[rows, width]
