"""Which rank rows every batch row uses: static device tables, and what the host knows of them.

Takes (row number, scale) lists of every batch row; gives tables that are rewritten in place. It knows no
adapter, no layer and no pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

R_CLASSES = (0, 16, 32, 64, 128, 256, 512)
"""Widths a table of rank rows may have. Few, so that a captured graph is reused by most batches."""

MAX_ROW_RANK = R_CLASSES[-1]
"""Largest total rank of one batch row in one layer group."""

G_CLASSES = (0, 4, 16, 64)
"""Widths a table of scale rows may have: weight-decomposed adapters in one blend."""

Entries = Sequence[tuple[int, float]]
"""(row number, scale) pairs of one batch row in one layer group."""


Composition = tuple[tuple[int, ...], ...]
"""Lists of rank rows of one length (row 0 fills up), each for as many adjoining batch rows as the others."""


@dataclass(frozen=True, slots=True)
class ScaleTables:
    """Which scale rows (weight decomposition) every batch row uses along one axis.

    idx: int32 [rows, G]; scale: fp32 [rows, G]; count: int32 [rows], used entries of each row; the entries
    after them are row 0 with scale 0. counts: `count` as the host knows it.
    """

    idx: Tensor
    scale: Tensor
    count: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tables:
    """Which rank rows every batch row uses, in one layer group.

    idx: int32 [rows, R]; scale: fp32 [rows, R]; nrank: int32 [rows], used entries of each row; the entries
    after them are row 0 with scale 0. entries, composition: the same as the host knows it. outputs, inputs: scale
    rows of the outputs and of the inputs of the layers; None where no batch row has any.
    """

    idx: Tensor
    scale: Tensor
    nrank: Tensor
    entries: tuple[Entries, ...]
    composition: Composition
    outputs: ScaleTables | None = None
    inputs: ScaleTables | None = None

    @property
    def rows(self) -> int:
        """Number of batch rows."""
        return self.idx.shape[0]

    @property
    def width(self) -> int:
        """The R class."""
        return self.idx.shape[1]


class TableBank:
    """Static tables, one set for each (rows, class), rewritten in place between forwards.

    Tables that would be rewritten with what they hold are left alone. fixed_width: an R class for all tables, with a
    list of rank rows for each batch row; then what is computed for a row does not depend on the others' blends, not
    even in its last bits.
    """

    def __init__(self, device: torch.device, fixed_width: int | None = None) -> None:
        self._device = device
        self._classes = R_CLASSES if fixed_width is None else (0, fixed_width)
        self._fixed_width = fixed_width
        self._places: dict[tuple[str, int, int], tuple[Tensor, Tensor, Tensor]] = {}
        self._held: dict[tuple[str, int, int], tuple[Entries, ...]] = {}

    def write(
        self,
        rows: Sequence[Entries],
        outputs: Sequence[Entries] | None = None,
        inputs: Sequence[Entries] | None = None,
    ) -> Tables | None:
        """Tables of one (rank row, scale) list a batch row; None where all lists are empty.

        outputs, inputs: (scale row, weight) lists of every batch row, where some row has any.

        Raises:
            ValueError: where a list is longer than its largest class.
        """
        entries = tuple(tuple(row) for row in rows)
        width = class_of(max(map(len, entries), default=0), self._classes, "total rank")
        scales = [self._scales(axis, lists) for axis, lists in (("outputs", outputs), ("inputs", inputs))]
        if width == 0 and scales == [None, None]:
            return None
        idx, scale, nrank = self._fill("rank", entries, max(width, self._classes[1]))
        return Tables(idx, scale, nrank, entries, _composition(entries, self._fixed_width), *scales)

    def _scales(self, axis: str, lists: Sequence[Entries] | None) -> ScaleTables | None:
        entries = tuple(tuple(row) for row in lists or ())
        width = class_of(max(map(len, entries), default=0), G_CLASSES, f"decomposed adapters in {axis}")
        if width == 0:
            return None
        return ScaleTables(*self._fill(axis, entries, width), tuple(map(len, entries)))

    def _fill(self, kind: str, entries: tuple[Entries, ...], width: int) -> tuple[Tensor, Tensor, Tensor]:
        key = (kind, len(entries), width)
        if key not in self._places:
            shape = (len(entries), width)
            self._places[key] = (
                torch.zeros(shape, dtype=torch.int32, device=self._device),
                torch.zeros(shape, dtype=torch.float32, device=self._device),
                torch.zeros(len(entries), dtype=torch.int32, device=self._device),
            )
        idx, scale, count = self._places[key]
        if self._held.get(key) != entries:
            pad = ((0, 0.0),) * width
            padded = [(*row, *pad[len(row) :]) for row in entries]
            idx.copy_(torch.tensor([[r for r, _ in row] for row in padded], dtype=torch.int32))
            scale.copy_(torch.tensor([[s for _, s in row] for row in padded]))
            count.copy_(torch.tensor([len(row) for row in entries], dtype=torch.int32))
            self._held[key] = entries
        return idx, scale, count


def class_of(count: int, classes: Sequence[int], what: str) -> int:
    """Smallest of `classes` that holds `count`.

    Raises:
        ValueError: where none does; names `what`.
    """
    for width in classes:
        if count <= width:
            return width
    raise ValueError(f"{what} is {count}, at most {classes[-1]}")


def _composition(entries: Sequence[Entries], fixed_width: int | None) -> Composition:
    """One list for each run of batch rows with the same rank rows where the runs are equally long, else for each
    batch row; always for each, and of a fixed length, where that is asked for."""
    lists = [tuple(row for row, _ in row_entries) for row_entries in entries]
    runs = [(rows, len(list(members))) for rows, members in groupby(lists)]
    if fixed_width is None and len({length for _, length in runs}) == 1:
        lists = [rows for rows, _ in runs]
    longest = fixed_width or max(1, *map(len, lists))
    return tuple((*rows, *(0,) * (longest - len(rows))) for rows in lists)
