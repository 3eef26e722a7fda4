"""Which adapters are in host memory: read ahead, kept while somebody needs them, put out when others need the room.

Takes versions and a reader; gives their canonical factors as futures. Reading runs on threads of its own, so that
several are read at once and nobody's thread waits for a disk. It knows no device, no job and no pin: whoever wants an
adapter kept holds it. Safe for several threads.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from loramux_server.engine.compiled_reader import HostAdapter, Read
from loramux_server.engine.load_errors import told
from loramux_server.errors import Draining, PinTooLarge
from loramux_server.metrics import Metrics
from loramux_store.footprint import vector_bytes
from loramux_store.record import VersionRecord

READERS = 4
"""Versions read at once: enough for a disk that seeks to have its next reads queued, each takes one at a time."""

PIN_SHARE = 0.5
"""Of the budget, that pins may take: what requests need finds the rest."""


@dataclass(slots=True, eq=False)
class HostEntry:
    """A version that is in host memory or on its way. future: its factors, or why they cannot be read; cannot be
    cancelled. users: who holds it. nbytes: what it takes, foreseen while it is read."""

    version: VersionRecord
    nbytes: int
    users: int = 0
    future: "Future[HostAdapter]" = field(default_factory=lambda: Future[HostAdapter]())
    reading: "Future[None] | None" = None

    @property
    def is_read(self) -> bool:
        """Whether its factors are there."""
        return self.future.done() and self.future.exception() is None


class HostTier:
    """Versions in host memory. Those that are held are never put out, of the others the one first that was left longest
    ago. All together take at most the budget, but for those that are held and do not fit.

    A version is read once for all who want it meanwhile. A read that fails fails them, and is not remembered: whoever
    comes later has it read again.

    read: gives a version's factors; it may be replaced, for a slower one. budget: bytes.
    """

    def __init__(self, read: Read, budget: int, metrics: Metrics) -> None:
        self.read = read
        self.budget = budget
        self._metrics = metrics
        self._lock = threading.Lock()
        self._entries: dict[str, HostEntry] = {}
        self._idle: OrderedDict[str, HostEntry] = OrderedDict()  # read, without users, in the order they were left
        self._pinned: dict[str, int] = {}
        self._bytes = 0  # of all entries
        self._held_bytes = 0  # of those with users
        self._read_bytes = self._read = 0
        self._closed = False
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="adapter-reader")
        metrics.cache_budget.labels("host").set(budget)
        self._gauge()

    def has(self, digest: str) -> bool:
        """Whether a version's factors are here."""
        with self._lock:
            entry = self._entries.get(digest)
            return entry is not None and entry.is_read

    @property
    def versions(self) -> list[VersionRecord]:
        """Whose factors are here now."""
        with self._lock:
            return [entry.version for entry in self._entries.values() if entry.is_read]

    @property
    def nbytes(self) -> int:
        """Of the factors that are here."""
        return self._read_bytes

    def look_up(self, digest: str) -> None:
        """Counts a hit or a miss: once for each who wants it, however often it is asked for."""
        (self._metrics.cache_hits if self.has(digest) else self._metrics.cache_misses).labels("host").inc()

    def hold(self, version: VersionRecord) -> HostEntry:
        """The version with one user more, read if it is not here. To be given back with `release`.

        Raises:
            Draining: the tier is closed.
        """
        with self._lock:
            return self._hold(version)

    def prefetch(self, version: VersionRecord) -> HostEntry | None:
        """The same, unless what is held already leaves no room for it: reading ahead must not fill the memory."""
        with self._lock:
            entry = self._entries.get(version.digest)
            nbytes = foreseen_bytes(version) if entry is None else entry.nbytes
            if self._closed or ((entry is None or entry.users == 0) and self._held_bytes + nbytes > self.budget):
                return None
            return self._hold(version)

    def release(self, entry: HostEntry) -> None:
        """One user less. A read that nobody waits for any more and that has not begun is given up."""
        with self._lock:
            entry.users -= 1
            if entry.users or self._entries.get(entry.version.digest) is not entry:
                return  # held by others, or its read failed
            self._held_bytes -= entry.nbytes
            if entry.is_read:
                self._idle[entry.version.digest] = entry
            elif entry.reading is not None and entry.reading.cancel():
                self._forget(entry)
            self._make_room()
            self._gauge()

    def pin(self, version: VersionRecord) -> None:
        """Counts a version as one that is kept for good; whoever pins it holds it.

        Raises:
            PinTooLarge: where pins would take more than their share of the budget.
        """
        with self._lock:
            needed, most = foreseen_bytes(version), int(self.budget * PIN_SHARE)
            held = sum(nbytes for digest, nbytes in self._pinned.items() if digest != version.digest)
            if held + needed > most:
                raise PinTooLarge(f"{version.adapter}@{version.number}", f"{needed} bytes in host memory", held, most)
            self._pinned[version.digest] = needed

    def unpin(self, digest: str) -> None:
        """Counts it so no longer."""
        with self._lock:
            self._pinned.pop(digest, None)

    def drop(self, digests: Collection[str]) -> None:
        """Puts out those of these that nobody holds: their adapter was deleted."""
        with self._lock:
            for digest in digests:
                if (entry := self._idle.pop(digest, None)) is not None:
                    self._evict(entry, "deleted")
            self._gauge()

    def evict_unused(self) -> None:
        """Puts out every adapter that nobody holds."""
        with self._lock:
            while self._idle:
                self._evict(self._idle.popitem()[1], "unused")
            self._gauge()

    def close(self) -> None:
        """Ends the readers' threads; what was not read yet never is."""
        with self._lock:
            self._closed = True
        self._readers.shutdown(wait=True, cancel_futures=True)

    def _hold(self, version: VersionRecord) -> HostEntry:
        if self._closed:
            raise Draining("the server is stopping and loads no more adapters")
        entry = self._entries.get(version.digest)
        if entry is None:
            entry = self._entries[version.digest] = HostEntry(version, foreseen_bytes(version))
            entry.future.set_running_or_notify_cancel()
            self._bytes += entry.nbytes
        self._idle.pop(version.digest, None)
        if entry.users == 0:
            self._held_bytes += entry.nbytes
        entry.users += 1
        if entry.reading is None:
            self._make_room()
            entry.reading = self._readers.submit(self._fetch, entry)
        return entry

    def _fetch(self, entry: HostEntry) -> None:
        """On a reader's thread. The future is told last and without the lock: its callbacks may call back."""
        try:
            adapter = self.read(entry.version)
            nbytes = adapter.nbytes
        except Exception as error:
            with self._lock:
                if entry.users:
                    self._held_bytes -= entry.nbytes
                self._forget(entry)
            entry.future.set_exception(told(error, entry.version, "host"))
            return
        with self._lock:
            self._read_bytes += nbytes
            self._read += 1
            self._resize(entry, nbytes)
        entry.future.set_result(adapter)
        with self._lock:
            if entry.users == 0 and self._entries.get(entry.version.digest) is entry:
                self._idle[entry.version.digest] = entry
            self._make_room()
            self._gauge()

    def _resize(self, entry: HostEntry, nbytes: int) -> None:
        more, entry.nbytes = nbytes - entry.nbytes, nbytes
        self._bytes += more
        self._held_bytes += more if entry.users else 0

    def _make_room(self) -> None:
        while self._bytes > self.budget and self._idle:
            _, entry = self._idle.popitem(last=False)
            self._evict(entry, "room")

    def _evict(self, entry: HostEntry, reason: str) -> None:
        """One that was taken out of the idle ones."""
        self._forget(entry)
        self._read_bytes -= entry.nbytes
        self._read -= 1
        self._metrics.cache_evictions.labels("host", reason).inc()

    def _forget(self, entry: HostEntry) -> None:
        del self._entries[entry.version.digest]
        self._bytes -= entry.nbytes

    def _gauge(self) -> None:
        self._metrics.resident.labels("host").set(self._read)
        self._metrics.resident_bytes.labels("host").set(self._read_bytes)


def foreseen_bytes(version: VersionRecord) -> int:
    """Of a version's factors and vectors in host memory, fp32; in every layer of a layer group as many rank rows as its
    largest rank there, so that it takes no more."""
    return 2 * version.device_bytes - vector_bytes(version.embeddings)
