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

    @property
    def place(self) -> tuple[int, ...]:
        """Addresses that tell these tables from all others; 0 for what they have none of."""
        return tuple(0 if each is None else each.idx.data_ptr() for each in (self, self.outputs, self.inputs))


class TableBank:
    """Static tables, one set for each (rows, class), rewritten in place between forwards.

    Only batch rows that changed are written. fixed_width: an R class for all tables, with a
    list of rank rows for each batch row; then what is computed for a row does not depend on the others' blends, not
    even in its last bits.
    """

    def __init__(self, device: torch.device, fixed_width: int | None = None) -> None:
        self._device = device
        self._classes = R_CLASSES if fixed_width is None else (0, fixed_width)
        self._scale_classes = G_CLASSES if fixed_width is None else (0, G_CLASSES[-1])
        self._fixed_width = fixed_width
        self._places: dict[tuple[str, int, int], _Place] = {}

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
        place = self._place("rank", entries, max(width, self._classes[1]))
        if place.write(entries) or place.composition is None:
            place.composition = _composition(entries, self._fixed_width)
        return Tables(*place.tensors, entries, place.composition, *scales)

    def _scales(self, axis: str, lists: Sequence[Entries] | None) -> ScaleTables | None:
        entries = tuple(tuple(row) for row in lists or ())
        width = class_of(max(map(len, entries), default=0), self._scale_classes, f"decomposed adapters in {axis}")
        if width == 0:
            return None
        place = self._place(axis, entries, width)
        place.write(entries)
        return ScaleTables(*place.tensors, tuple(map(len, entries)))

    def _place(self, kind: str, entries: tuple[Entries, ...], width: int) -> "_Place":
        key = (kind, len(entries), width)
        if key not in self._places:
            self._places[key] = _Place(len(entries), width, self._device)
        return self._places[key]


class _Place:
    """Static tensors (idx, scale, count) on the device, and what the host last wrote into them.

    On the CPU the host writes into the tensors themselves, otherwise into copies in pinned memory: a change allocates
    no tensor, and touches the batch rows that changed.
    """

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        self.tensors = _zeros(rows, width, device)
        self._staging = self.tensors if device.type == "cpu" else _zeros(rows, width, torch.device("cpu"), pinned=True)
        self._host = tuple(tensor.numpy() for tensor in self._staging)
        self._entries: tuple[Entries, ...] = ((),) * rows
        self.composition: Composition | None = None

    def write(self, entries: tuple[Entries, ...]) -> bool:
        """Writes what changed; whether anything did."""
        idx, scale, count = self._host
        pairs = zip(entries, self._entries, strict=True)
        changed = [row for row, (new, old) in enumerate(pairs) if new is not old and new != old]
        for row in changed:
            used = len(entries[row])
            idx[row, :used] = [number for number, _ in entries[row]]
            scale[row, :used] = [value for _, value in entries[row]]
            idx[row, used:], scale[row, used:], count[row] = 0, 0, used
        if changed and self._staging is not self.tensors:
            for tensor, staging in zip(self.tensors, self._staging, strict=True):
                tensor.copy_(staging)
        self._entries = entries
        return bool(changed)


def _zeros(rows: int, width: int, device: torch.device, *, pinned: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """idx int32 [rows, width], scale fp32 [rows, width], count int32 [rows]."""
    return (
        torch.zeros(rows, width, dtype=torch.int32, device=device, pin_memory=pinned),
        torch.zeros(rows, width, dtype=torch.float32, device=device, pin_memory=pinned),
        torch.zeros(rows, dtype=torch.int32, device=device, pin_memory=pinned),
    )


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
