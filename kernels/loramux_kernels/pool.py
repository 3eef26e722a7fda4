"""Rank rows on the device: who owns which row numbers, and the arrays that hold them.

Takes sizes and row contents; gives pool arrays, and on the CPU the rows of a composition side by side.
It knows no adapter and no layer name.
"""

import math
import mmap
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from loramux_kernels.tables import Composition

SCALE_ROWS = 256
"""Most rows of a scale pool, the unit row included: weight-decomposed adapters on the device at once."""


class PoolFull(Exception):
    """Not enough free rank rows."""

    def __init__(self, wanted: int, free: int) -> None:
        super().__init__(f"{wanted} rank rows wanted, {free} free")
        self.wanted = wanted
        self.free = free


class RowAllocator:
    """Hands out row numbers 1 .. size - 1; row 0 stays the zero row."""

    def __init__(self, size: int) -> None:
        if size < 2:
            raise ValueError(f"pool size {size}, expected at least 2")
        self.size = size
        self._free = list(range(1, size))  # always sorted

    @property
    def capacity(self) -> int:
        """Number of rows that can be owned."""
        return self.size - 1

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


Factors = tuple[Tensor, Tensor]
"""Factors of lists of rank rows."""


class RankRowPool:
    """A_pool[P, K] and B_pool[P, N] of one layer; row 0 is zero.

    g: fp32 [scale rows, N] of output scales less one, h: fp32 [scale rows, K or Cin] of input scales less one (weight
    decomposition); row 0 is zero; None until an adapter of that axis touches the layer.
    """

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = a, b
        self.g: Tensor | None = None
        self.h: Tensor | None = None
        self._writes = 0
        self._gathered: tuple[Composition, int] = ((), -1)
        self._side_by_side: tuple[Tensor, ...] = (a[:0], b[:0])

    @classmethod
    def zeros(cls, size: int, k: int, n: int, *, dtype: torch.dtype, device: torch.device) -> "RankRowPool":
        """An empty pool of `size` rows."""
        return cls(_zeros(size, k, dtype=dtype, device=device), _zeros(size, n, dtype=dtype, device=device))

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
        self._writes += 1

    def write_output_scale(self, row: int, scale: Tensor | None, rows: int = SCALE_ROWS) -> None:
        """Writes output scales [N] into a scale row; None: scales nothing.

        rows: of the scale pool, which grows to them where it is there: more than any number that a table may hold.
        """
        self.g = _with_scale(self.g, row, scale, rows, self.b.device)

    def write_input_scale(self, row: int, scale: Tensor | None, rows: int = SCALE_ROWS) -> None:
        """The same for input scales: [K] of a linear layer, [Cin] of a convolution."""
        self.h = _with_scale(self.h, row, scale, rows, self.a.device)

    def gathered(self, composition: Composition) -> Factors:
        """a [lists, r, K] and b [lists, r, N] of a composition: views where it is one list of adjoining rows, else
        parts of one buffer, filled again only when the composition or the pool has changed.

        A composition of more rows than the pool has is not kept: its buffer would outgrow the pool.
        """
        if len(composition) == 1 and _adjoin(composition[0]):
            rows = slice(composition[0][0], composition[0][-1] + 1)
            return self.a[None, rows], self.b[None, rows]
        count = len(composition) * len(composition[0])
        if count > len(self.a):
            index = torch.tensor(composition, device=self.a.device)
            return self.a[index], self.b[index]
        if self._gathered != (composition, self._writes):
            self._gather(torch.tensor(composition, device=self.a.device).flatten())
            self._gathered = composition, self._writes
        a, b = self._side_by_side
        shape = (len(composition), len(composition[0]), -1)
        return a[:count].view(shape), b[:count].view(shape)

    def _gather(self, index: Tensor) -> None:
        if len(self._side_by_side[0]) < len(index):
            self._side_by_side = tuple(pool.new_empty(len(index), pool.shape[1]) for pool in (self.a, self.b))
        for pool, buffer in zip((self.a, self.b), self._side_by_side, strict=True):
            torch.index_select(pool, 0, index, out=buffer[: len(index)])


class FusedPool:
    """The pools of layers that read one input, stacked: a [parts, P, K], b [parts, P, N]; each part a view."""

    def __init__(self, parts: int, size: int, k: int, n: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.a = _zeros(parts, size, k, dtype=dtype, device=device)
        self.b = _zeros(parts, size, n, dtype=dtype, device=device)
        self.parts = tuple(RankRowPool(a, b) for a, b in zip(self.a, self.b, strict=True))

    def by_part(self, w0: Tensor, bias: Tensor | None) -> list[tuple[Tensor, Tensor | None, RankRowPool]]:
        """Weight [N, K], bias [N] and pool of each part of stacked weights [parts * N, K] and biases [parts * N]."""
        biases = [None] * len(self.parts) if bias is None else bias.chunk(len(self.parts))
        return list(zip(w0.chunk(len(self.parts)), biases, self.parts, strict=True))


def balance(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(2^k a, 2^-k b) with largest magnitudes within a factor of two; exact in floating point."""
    high_a, high_b = float(a.abs().max()), float(b.abs().max())
    if high_a == 0 or high_b == 0:
        return a, b
    exponent = round((math.log2(high_b) - math.log2(high_a)) / 2)
    return a * 2.0**exponent, b * 2.0**-exponent


def _zeros(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on the CPU pages of the system's, which it clears when they are first written: most of a pool never is,
    and whoever first asks for an adapter would wait for all of it."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def _with_scale(pool: Tensor | None, row: int, scale: Tensor | None, rows: int, device: torch.device) -> Tensor | None:
    """The pool with a row of scales less one: itself, or a larger copy, so that forwards under way keep theirs."""
    if pool is None and scale is None:
        return None
    if pool is None or len(pool) < rows:
        width = len(scale) if pool is None and scale is not None else cast("Tensor", pool).shape[1]
        grown = torch.zeros(rows, width, device=device)
        if pool is not None:
            grown[: len(pool)] = pool
        pool = grown
    pool[row] = 0 if scale is None else scale.float() - 1
    return pool


def _adjoin(rows: Sequence[int]) -> bool:
    return all(after == before + 1 for before, after in pairwise(rows))
