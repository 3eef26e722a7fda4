"""What a picture's blend adds at a moment: numbers on the device and weights, by layer group and block of the UNet.

Takes resolved adapters with their numbers and how far the picture is; gives entries for the tables. The vectors of
embeddings it hands on as they are. It knows no layers and no queue.

A weight is the product of the adapter's weight, its factor for the model, its factor for the block and its schedule at
this progress. Adapters of weight zero are left out, so an adapter costs nothing while it is off.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from loramux_kernels import Entries
from loramux_server.engine.rooms import INPUTS, OUTPUTS, SIDES
from loramux_server.requests import SchedulePoint, Weighted

EVERYWHERE = ""
"""Key of the layers outside the blocks that a blend names."""


@dataclass(frozen=True, slots=True)
class Added:
    """What one batch row adds in one layer group: (number, weight) pairs of rank rows, of scale rows along the outputs
    and along the inputs, and of side operations."""

    rows: Entries = ()
    outputs: Entries = ()
    inputs: Entries = ()
    sides: Entries = ()


NOTHING = Added()

RowEntries = Mapping[str, Added]
"""What one batch row adds in one layer group, by block; EVERYWHERE for all blocks that are not keys."""

Rows = Mapping[str, Sequence[int]]
"""Numbers that one adapter owns, by the name of the room."""


Vectors = tuple[Mapping[str, Tensor], ...]
"""Of one adapter's embeddings: [n, width] in fp32 by text encoder."""


@dataclass(frozen=True, slots=True)
class PlacedBlend:
    """A resolved blend with the rows of its adapters, and with the vectors of those that have or are embeddings."""

    adapters: tuple[tuple[Weighted, Rows], ...]
    embeddings: tuple[tuple[Weighted, Vectors], ...] = ()

    @property
    def scheduled(self) -> bool:
        """Whether it changes with progress."""
        return any(weighted.schedule for weighted, _ in self.adapters)

    def at(self, progress: float, groups: Sequence[str]) -> dict[str, RowEntries]:
        """Entries of the UNet's layer groups at a progress of 0 (first step) to below 1."""
        blocks = {block for weighted, _ in self.adapters for block, _ in weighted.parts.blocks}
        keys = (EVERYWHERE, *sorted(blocks))
        factors = [
            weighted.weight * weighted.parts.unet * factor_at(weighted.schedule, progress)
            for weighted, _ in self.adapters
        ]
        return {group: {block: self._added(group, block, factors) for block in keys} for group in groups}

    def in_text_encoder(self, group: str) -> Added:
        """Entries of a text encoder, which runs once: schedules do not act there."""
        factors = [weighted.in_text_encoder(group) for weighted, _ in self.adapters]
        return self._added(group, EVERYWHERE, factors)

    def _added(self, group: str, block: str, factors: Sequence[float]) -> Added:
        return Added(*(self._entries(group + room, block, factors) for room in ("", OUTPUTS, INPUTS, SIDES)))

    def _entries(self, room: str, block: str, factors: Sequence[float]) -> Entries:
        entries: list[tuple[int, float]] = []
        for (weighted, rows), factor in zip(self.adapters, factors, strict=True):
            scale = factor * dict(weighted.parts.blocks).get(block, 1.0)
            if scale != 0:
                entries.extend((row, scale) for row in rows.get(room, ()))
        return tuple(entries)


def factor_at(schedule: Sequence[SchedulePoint], progress: float) -> float:
    """The schedule's value: straight lines between its points, level before the first and after the last; where two
    points share a place, the later one holds from there on. 1 without a schedule."""
    if not schedule:
        return 1.0
    after = bisect_right([at for at, _ in schedule], progress)
    if after == 0:
        return schedule[0][1]
    if after == len(schedule):
        return schedule[-1][1]
    (left, low), (right, high) = schedule[after - 1], schedule[after]
    return low + (high - low) * (progress - left) / (right - left)
