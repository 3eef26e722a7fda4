"""Which pictures step next.

Takes pictures with their bucket and number of rows, and word of what became ready, finished or was
cancelled; gives plans. It knows no torch, no gRPC and no engine.

Within a bucket pictures run in the order they were taken in; buckets take turns, a tick each. Pictures
that are not ready (their adapters are loading) are passed over, so they hold nobody up.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loramux_server.errors import Busy
from loramux_server.requests import ImageKey

Bucket = tuple[int, int]
"""Latent height and width: pictures of one bucket can share a forward."""


@dataclass(frozen=True, slots=True)
class Item:
    """A picture in the queue. rows: rows of a forward it takes, 1 or 2."""

    key: ImageKey
    bucket: Bucket
    rows: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The pictures of one tick, all of one bucket."""

    keys: tuple[ImageKey, ...]


class Scheduler:
    """The queue and the choice of the next tick. Not thread-safe: the runner guards it.

    max_images: pictures waiting, running or being encoded before `submit` says Busy; max_rows: rows of one forward.
    """

    def __init__(self, max_images: int, max_rows: int) -> None:
        if max_rows < 2:
            raise ValueError(f"max_rows {max_rows}, expected at least 2 (a guided picture)")
        self._max_images = max_images
        self._max_rows = max_rows
        self._items: OrderedDict[ImageKey, Item] = OrderedDict()
        self._ready: set[ImageKey] = set()
        self._finished: set[ImageKey] = set()
        self._turns: OrderedDict[Bucket, None] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Pictures that are not ready to step."""
        return len(self._items) - len(self._ready) - len(self._finished)

    @property
    def running(self) -> int:
        """Pictures that are ready to step."""
        return len(self._ready)

    def submit(self, items: Sequence[Item]) -> int:
        """Takes in a job's pictures, all or none; returns how many stand before them.

        Raises:
            Busy: where the queue would grow above max_images.
        """
        position = len(self._items)
        if position + len(items) > self._max_images:
            raise Busy(f"{position} pictures are queued, at most {self._max_images}", retry_after=1.0)
        self._items.update((item.key, item) for item in items)
        return position

    def ready(self, keys: Iterable[ImageKey]) -> None:
        """These pictures can step from now on."""
        for key in keys:
            self._ready.add(key)
            self._turns.setdefault(self._items[key].bucket)

    def plan(self) -> Plan | None:
        """The next tick, or None where nothing can step."""
        if not self._ready:
            return None
        for bucket in list(self._turns):
            self._turns.move_to_end(bucket)
            keys = self._fill(bucket)
            if keys:
                return Plan(keys)
            del self._turns[bucket]
        return None

    def finish(self, keys: Iterable[ImageKey]) -> None:
        """These pictures made their last step; they count for the queue until they are removed."""
        for key in keys:
            self._ready.discard(key)
            self._finished.add(key)

    def remove(self, keys: Iterable[ImageKey]) -> None:
        """Forgets pictures that were delivered, failed or were cancelled."""
        for key in keys:
            self._items.pop(key, None)
            self._ready.discard(key)
            self._finished.discard(key)

    def _fill(self, bucket: Bucket) -> tuple[ImageKey, ...]:
        room, keys = self._max_rows, list[ImageKey]()
        for item in self._items.values():
            if item.bucket == bucket and item.key in self._ready and item.rows <= room:
                keys.append(item.key)
                room -= item.rows
        return tuple(keys)
