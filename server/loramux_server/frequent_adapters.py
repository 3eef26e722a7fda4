"""Which adapters are asked for most, with series for a few of them however many there are.

Takes names as they are asked for; gives a counter of those that were asked for most, and one of all others. This is
the space-saving algorithm (Metwally, Agrawal and El Abbadi, 2005): a name that is not among the few takes the place of
the least frequent one. A series counts only what came since its name last took a place, so that it never shows more
than there was; what it showed goes over to the others when it loses its place.
"""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from loramux_server.described import Described

REQUESTS = Described(
    "loramux_adapter_requests_total",
    "counter",
    "Times that a request's blend listed the adapter; since it last came among those that are listed most, which have "
    "a series each.",
    {"adapter": "at most --adapter-series names, and `_other` for all the rest"},
)
OTHER = "_other"
"""No adapter's name: those begin with a letter or a digit."""


@dataclass(slots=True)
class _Place:
    """seen: counted since it took the place; before: what is to be thought of as counted before, at most."""

    seen: int
    before: int


class FrequentAdapters(Collector):
    """most: names with a series of their own; 0 counts nothing. Safe for several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._places: dict[str, _Place] = {}
        self._other = 0
        self._lock = threading.Lock()

    def count(self, names: Iterable[str]) -> None:
        """Each once more."""
        if self._most:
            with self._lock:
                for name in names:
                    self._count(name)

    def _count(self, name: str) -> None:
        place = self._places.get(name)
        if place is None:
            before = 0 if len(self._places) < self._most else self._leave()
            place = self._places[name] = _Place(0, before)
        place.seen += 1

    def _leave(self) -> int:
        """Frees the place of the least frequent; gives its count."""
        least = min(self._places, key=lambda name: self._places[name].seen + self._places[name].before)
        gone = self._places.pop(least)
        self._other += gone.seen
        return gone.seen + gone.before

    def collect(self) -> Iterator[CounterMetricFamily]:
        """One counter; nothing where there are to be no series."""
        family = CounterMetricFamily(REQUESTS.name, REQUESTS.text, labels=list(REQUESTS.labels))
        if self._most:
            with self._lock:
                for name, place in self._places.items():
                    family.add_metric([name], place.seen)
                family.add_metric([OTHER], self._other)
        yield family
