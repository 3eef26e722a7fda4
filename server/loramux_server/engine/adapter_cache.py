"""Which adapters have rank rows on the device: loading, counting users, evicting.

Takes versions of the store; gives leases that hold their row numbers until released. It reads compiled
files and writes pool rows on a thread of its own, so that loading never holds up a tick. It knows no
request and no queue.
"""

import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from loramux_kernels import PoolFull
from loramux_server.engine.blends import Rows
from loramux_server.engine.lora_layers import LayerGroup
from loramux_server.errors import Incompatible, PictureFailed
from loramux_server.metrics import Metrics
from loramux_store.errors import StoreError
from loramux_store.record import VersionRecord

_log = logging.getLogger(__name__)

Factors = dict[str, tuple[Tensor, Tensor, float]]
"""Module path to (a [r, K], b [r, N], scale)."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Adapters kept on the device for one job: rows by digest. Given back with `AdapterCache.release`."""

    rows: Mapping[str, Rows]


@dataclass(slots=True)
class _Resident:
    rows: dict[str, tuple[int, ...]]
    users: int = 0


@dataclass(slots=True)
class _Wanted:
    versions: tuple[VersionRecord, ...]
    future: "Future[Lease]" = field(default_factory=lambda: Future[Lease]())


class AdapterCache:
    """Versions in the pool, least recently used first; those in use are never put out.

    compiled: gives the compiled file of a version (the store's `compiled`); max_rank: of a batch row in a layer group.
    """

    def __init__(
        self,
        groups: Mapping[str, LayerGroup],
        compiled: Callable[[VersionRecord], Path],
        metrics: Metrics,
        max_rank: int,
    ) -> None:
        self._groups = groups
        self._compiled = compiled
        self._metrics = metrics
        self._max_rank = max_rank
        self._lock = threading.Lock()
        self._resident: OrderedDict[str, _Resident] = OrderedDict()
        self._waiting: list[_Wanted] = []
        self._releases = 0
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="adapter-loader")
        self._group_of = {path: group.name for group in groups.values() for path in group.layers}

    def check(self, versions: Sequence[VersionRecord]) -> None:
        """Refuses a blend that can never fit.

        Raises:
            Incompatible: where its total rank in a layer group is above the largest or above the pool.
        """
        for name, group in self._groups.items():
            rank = sum(self._ranks(version).get(name, 0) for version in versions)
            room = min(self._max_rank, group.rows.size - 1)
            if rank > room:
                raise Incompatible("BLEND_TOO_LARGE", f"the blend has total rank {rank} in {name}, at most {room} fits")

    def request(self, versions: Sequence[VersionRecord]) -> "Future[Lease]":
        """A lease on these versions, once all of them have rows; all are loaded or none is.

        Cancelling the future gives the job's place up. Callbacks of the future run without the cache's lock.
        """
        wanted = _Wanted(tuple(versions))
        with self._lock:
            lease = self._grant(wanted) if self._all_resident(wanted) else None
        if lease is None:
            self._loader.submit(self._load, wanted)
        else:
            self._metrics.cache_hits.labels("device").inc(len(versions))
            self._hand_over(wanted, lease)
        return wanted.future

    def release(self, lease: Lease) -> None:
        """Gives a lease back; jobs that wait for room are tried again."""
        with self._lock:
            for digest in lease.rows:
                self._resident[digest].users -= 1
            self._releases += 1
            retry, self._waiting = self._waiting, []
        for wanted in retry:
            if not wanted.future.cancelled():
                self._loader.submit(self._load, wanted)

    def evict_unused(self) -> None:
        """Puts out every adapter that no job uses."""
        with self._lock, suppress(PoolFull):
            while True:
                self._evict()

    def close(self) -> None:
        """Ends the loader's thread."""
        self._loader.shutdown(wait=True, cancel_futures=True)

    def _ranks(self, version: VersionRecord) -> dict[str, int]:
        """Rows a version takes in each layer group: its largest rank there."""
        ranks: dict[str, int] = {}
        for path, rank in version.ranks.items():
            group = self._group_of[path]
            ranks[group] = max(ranks.get(group, 0), rank)
        return ranks

    def _all_resident(self, wanted: _Wanted) -> bool:
        return all(version.digest in self._resident for version in wanted.versions)

    def _grant(self, wanted: _Wanted) -> Lease:
        """Counts the job as a user of all its versions. Call with the lock held, all resident."""
        rows: dict[str, Rows] = {}
        for version in wanted.versions:
            resident = self._resident[version.digest]
            if version.digest not in rows:
                resident.users += 1
            rows[version.digest] = resident.rows
            self._resident.move_to_end(version.digest)
        return Lease(rows)

    def _hand_over(self, wanted: _Wanted, lease: Lease) -> None:
        """Call without the lock: the future's callbacks may call back into the cache."""
        if wanted.future.set_running_or_notify_cancel():
            wanted.future.set_result(lease)
        else:
            self.release(lease)

    def _load(self, wanted: _Wanted) -> None:
        """On the loader's thread: brings in what is missing, grants, or leaves the job waiting for room."""
        if wanted.future.cancelled():
            return
        releases = self._releases
        try:
            lease = self._bring_in(wanted)
        except PoolFull:
            self._wait(wanted, releases)
        except Exception as error:
            if wanted.future.set_running_or_notify_cancel():
                wanted.future.set_exception(_told(error, wanted.versions))
        else:
            self._hand_over(wanted, lease)

    def _bring_in(self, wanted: _Wanted) -> Lease:
        held: list[_Resident] = []
        try:
            for version in wanted.versions:
                held.append(self._hold(version))
            with self._lock:
                return self._grant(wanted)
        finally:
            with self._lock:
                for resident in held:
                    resident.users -= 1

    def _wait(self, wanted: _Wanted, releases: int) -> None:
        """Puts a job aside until the next release; at once again where one came while it was tried."""
        with self._lock:
            if self._releases == releases:
                self._waiting.append(wanted)
                return
        self._loader.submit(self._load, wanted)

    def _hold(self, version: VersionRecord) -> _Resident:
        """The version's rows, loaded if need be, with one user more so that they stay."""
        with self._lock:
            resident = self._resident.get(version.digest)
            if resident is not None:
                resident.users += 1
                self._metrics.cache_hits.labels("device").inc()
                return resident
            rows = self._take(self._ranks(version))
        started = time.monotonic()
        self._metrics.cache_misses.labels("device").inc()
        try:
            self._write(rows, _read(self._compiled(version)))
        except BaseException:
            with self._lock:
                self._give_back(rows)
            raise
        resident = _Resident(rows, users=1)
        with self._lock:
            self._resident[version.digest] = resident
            self._metrics.resident.labels("device").set(len(self._resident))
        self._metrics.load_seconds.observe(time.monotonic() - started)
        return resident

    def _write(self, rows: Rows, factors: Factors) -> None:
        for name, numbers in rows.items():
            self._groups[name].write(numbers, {p: f for p, f in factors.items() if self._group_of[p] == name})

    def _give_back(self, rows: Rows) -> None:
        for name, numbers in rows.items():
            self._groups[name].rows.give_back(numbers)

    def _take(self, ranks: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Row numbers in every group, evicting unused versions until they fit; all or none."""
        while any(self._groups[name].rows.free < rank for name, rank in ranks.items()):
            self._evict()
        return {name: self._groups[name].rows.take(rank) for name, rank in ranks.items()}

    def _evict(self) -> None:
        for digest, resident in self._resident.items():
            if resident.users == 0:
                del self._resident[digest]
                self._give_back(resident.rows)
                self._metrics.cache_evictions.labels("device").inc()
                return
        raise PoolFull(1, 0)


def _told(error: Exception, versions: Sequence[VersionRecord]) -> Exception:
    """What a client hears: the store's own errors as they are, others without their insides."""
    if isinstance(error, StoreError):
        return error
    _log.error("an adapter could not be loaded", exc_info=error)
    names = ", ".join(f"{version.adapter}@{version.number}" for version in versions)
    return PictureFailed(f"one of {names} could not be loaded: {type(error).__name__}")


def _read(file: Path) -> Factors:
    with safe_open(file, framework="pt") as tensors:
        modules = json.loads(tensors.metadata()["modules"])
        return {
            path: (tensors.get_tensor(f"{path}.a"), tensors.get_tensor(f"{path}.b"), float(entry["scale"]))
            for path, entry in modules.items()
        }
