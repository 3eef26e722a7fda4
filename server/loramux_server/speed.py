"""How fast forwards are here: seconds per cost, measured as they run.

Takes the seconds of forwards; gives estimates that are never above what was measured. It knows no queue and no device.

A forward of many rows costs less a row than one of few, by how much depends on the device, so measurements are kept by
area and by rows in powers of two. Where a number of rows was not measured, two things are still sure: a forward with
more rows is no shorter, and a row in it is no dearer.
"""

from collections.abc import Callable
from dataclasses import dataclass

_NEWEST = 0.2  # weight of the newest forward: about the last ten count
_DEARER = 1.25  # rows that cost a quarter more are worth it to let somebody wait for
_ALIKE = 1.05  # rows that cost a twentieth more are not: measurements differ by that
_OLD = 60.0  # seconds after which a measurement says nothing: a slow minute must not turn requests away for ever


@dataclass(slots=True)
class _Measured:
    """None before the second forward of its kind: the first one compiles, allocates and warms up."""

    at: float
    seconds_per_cost: float | None = None


class Speed:
    """Measurements by area and rows; cost is rows times area times steps."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kinds: dict[tuple[int, int], _Measured] = {}
        self._recent: float | None = None

    @property
    def cost_per_second(self) -> float:
        """Of recent forwards of all kinds; 0 where none was measured."""
        return 0.0 if self._recent is None else 1 / self._recent

    def measured(self, area: int, rows: int, seconds: float) -> None:
        """A forward of that many rows took so long."""
        kind, now = (area, rows.bit_length()), self._clock()
        measured = self._kinds.get(kind)
        if measured is None:
            self._kinds[kind] = _Measured(now)
            return
        value = max(seconds, 1e-9) / (area * rows)
        old = now - measured.at > _OLD
        measured.seconds_per_cost = value if old else _averaged(measured.seconds_per_cost, value)
        measured.at = now
        self._recent = _averaged(self._recent, value)

    def seconds(self, area: int, rows: int, cost: float) -> float:
        """At least how long this cost takes in forwards of that many rows; 0 where nothing is known."""
        return cost * max((self._bound(area, rows, size) for size in range(1, 32)), default=0.0)

    def worth(self, area: int, rows: int) -> int:
        """The fewest rows not known to be dearer than in a forward of `rows`; `rows` where that was not measured."""
        full = self._known(area, rows.bit_length())
        if full is None:
            return rows
        for size in range(rows.bit_length() - 1, 0, -1):
            known = self._known(area, size)
            if known is not None and known > _DEARER * full:
                return 1 << size
        return 1

    def suffice(self, area: int, rows: int) -> int:
        """The fewest rows seen to be as cheap as any up to `rows`, or twice as many where those were not seen lately;
        `rows` where nothing was measured. (Where twice as many gain nothing, four times as many do not either.)"""
        full = rows.bit_length()
        known = {size: cost for size in range(1, full + 1) if (cost := self._known(area, size)) is not None}
        if not known:
            return rows
        size = min(size for size, cost in known.items() if cost <= _ALIKE * min(known.values()))
        if size < full and self._fresh(area, size + 1) == 0:
            size += 1
        return rows if size == full else 1 << (size - 1)

    def _known(self, area: int, size: int) -> float | None:
        """Seconds per cost of forwards of 2^(size-1) rows and more."""
        measured = self._kinds.get((area, size))
        return None if measured is None else measured.seconds_per_cost

    def _fresh(self, area: int, size: int) -> float:
        """As `_known`, but 0 where there is nothing or it is old."""
        known = self._known(area, size)
        return 0.0 if known is None or self._clock() - self._kinds[area, size].at > _OLD else known

    def _bound(self, area: int, rows: int, size: int) -> float:
        """What forwards of 2^(size-1) rows and more say about those of `rows`: seconds per cost, at least."""
        known = self._fresh(area, size)
        return known * (1 << (size - 1)) / rows if size < rows.bit_length() else known


def _averaged(average: float | None, newest: float) -> float:
    return newest if average is None else average + _NEWEST * (newest - average)
