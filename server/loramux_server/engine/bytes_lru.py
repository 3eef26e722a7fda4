"""A cache of the most recently used values, bounded by their bytes.

Takes keys and what makes a value that is missing; gives values. It knows nothing of what they are. For one thread.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from loramux_server.metrics import Metrics


class Sized(Protocol):
    """What says how much memory it takes."""

    @property
    def nbytes(self) -> int:
        """Of memory."""
        ...


Value = TypeVar("Value", bound=Sized)


class BytesLru(Generic[Value]):
    """Values by key, least recently used first. A value larger than the whole budget is not kept.

    name: what metrics call it.
    """

    def __init__(self, name: str, budget: int, metrics: Metrics) -> None:
        self._budget = budget
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._hits = metrics.text_cache_hits.labels(name)
        self._misses = metrics.text_cache_misses.labels(name)
        self._evictions = metrics.text_cache_evictions.labels(name)
        self._gauge = metrics.text_cache_bytes.labels(name)
        self.nbytes = 0

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key; made, and kept if it fits, where there is none."""
        value = self._values.get(key)
        if value is None:
            self._misses.inc()
            value = make()
            self._keep(key, value)
        else:
            self._hits.inc()
            self._values.move_to_end(key)
        return value

    def __len__(self) -> int:
        return len(self._values)

    def _keep(self, key: Hashable, value: Value) -> None:
        if value.nbytes > self._budget:
            return
        while self.nbytes + value.nbytes > self._budget:
            _, oldest = self._values.popitem(last=False)
            self.nbytes -= oldest.nbytes
            self._evictions.inc()
        self._values[key] = value
        self.nbytes += value.nbytes
        self._gauge.set(self.nbytes)
