"""Which adapters are on the device: loading, counting users, evicting.

Takes versions of the store; gives leases that hold their numbers, or the vectors of embeddings, until released. It
reads compiled files and writes their factors on a thread of its own, so that loading never holds up a tick. It knows no
request and no queue.
"""

import logging
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load

from loramux_kernels import G_CLASSES, PoolFull
from loramux_server.engine.blends import Rows, Vectors
from loramux_server.engine.device_memory import RAN_OUT
from loramux_server.engine.layer_group import LayerGroup
from loramux_server.engine.module_factors import ModuleFactors
from loramux_server.engine.module_factors import read_compiled as _read
from loramux_server.engine.rooms import INPUTS, OUTPUTS, Room
from loramux_server.errors import Incompatible, OutOfMemory, PictureFailed
from loramux_server.metrics import Metrics
from loramux_store.errors import DataLoss, StoreError
from loramux_store.record import MatchedModule, VersionRecord
from loramux_store.seal import SEAL

LOADS_PAST = 8
"""Jobs that pass one that waits for room before others that must load wait behind it."""
HITS_PAST = 64
"""Jobs that pass one that waits for room before all others wait behind it. Larger, because it holds up jobs that could
run: only where the same adapters are in use without a break does it come to that."""

VECTOR_BYTES = 64 << 20
"""For embeddings on the device. The largest has 0.6 MB (75 vectors for SDXL), so that two blends of 32 always fit."""

_VECTORS = "vectors"  # beside the names of rooms

_log = logging.getLogger(__name__)

T = TypeVar("T")

Factors = dict[str, ModuleFactors]
"""By module path."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Adapters kept on the device for one job: numbers, vectors, by digest. Given back with `AdapterCache.release`."""

    rows: Mapping[str, Rows]
    vectors: Mapping[str, Vectors]


@dataclass(slots=True)
class _Resident:
    """What one version has on the device: an embedding vectors, others numbers."""

    digest: str
    rows: Rows
    vectors: Vectors
    users: int

    @property
    def vector_bytes(self) -> int:
        return sum(each.nbytes for each in self.vectors.values())


@dataclass(slots=True, eq=False)
class _Wanted:
    """A job in line. passed: later jobs that were served since there was no room for it; None before that."""

    versions: tuple[VersionRecord, ...]
    needs: Mapping[str, Mapping[str, int]]
    future: "Future[Lease]" = field(default_factory=lambda: Future[Lease]())
    passed: int | None = None


class AdapterCache:
    """Versions on the device; those in use are never put out, of the others the one first that was left longest ago. No
    call looks at all of them: what a blend costs does not grow with their number.

    Jobs stand in line. One whose adapters are all there goes ahead at once, one for whose adapters there is no room is
    passed. The first in line is not passed for ever: after LOADS_PAST later jobs nothing more is loaded before it, and
    after HITS_PAST it is the next of all, so that adapters in steady use come free.

    Rows and vectors have a bound each: an adapter is put out only for one that needs what it holds.

    compiled: gives the compiled file of a version (the store's `compiled`); max_rank: of a batch row in a layer group;
    device: where vectors are kept.
    """

    def __init__(
        self,
        groups: Mapping[str, LayerGroup],
        compiled: Callable[[VersionRecord], Path],
        metrics: Metrics,
        max_rank: int,
        device: torch.device,
    ) -> None:
        self._groups = groups
        self._compiled = compiled
        self._metrics = metrics
        self._max_rank = max_rank
        self._device = device
        self._vector_bytes = 0
        self._lock = threading.Lock()
        self._resident: dict[str, _Resident] = {}
        self._idle: OrderedDict[str, _Resident] = OrderedDict()  # without users, in the order in which they were left
        self._spare = Counter[str]()  # sizes of the idle ones
        self._line: list[_Wanted] = []
        self._closed = False
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="adapter-loader")
        self._group_of = {path: group.name for group in groups.values() for path in group.paths}

    def check(self, blends: Sequence[Sequence[VersionRecord]]) -> None:
        """Refuses what one job asks for where it can never fit.

        Raises:
            Incompatible: where a blend's total rank in a layer group is above the largest of a row, or what all its
                blends' adapters take together is more than there is.
        """
        needs = {version.digest: self._needs(version) for blend in blends for version in blend}
        for name, room in self._rooms.items():
            asked = [sum(needs[version.digest].get(name, 0) for version in blend) for blend in blends]
            together = sum(need.get(name, 0) for need in needs.values())
            for count, most, what in (
                (max(asked), min(self._most(name), room.capacity), "the blend has"),
                (together, room.capacity, "blend and negative_blend have"),
            ):
                if count > most:
                    counted = f"total rank {count} in {name}" if name in self._groups else f"{count} {name}"
                    raise Incompatible("BLEND_TOO_LARGE", f"{what} {counted}, at most {most} fits")

    def request(self, versions: Sequence[VersionRecord]) -> "Future[Lease]":
        """A lease on these versions, once all of them have rows; all are loaded or none is.

        Cancelling the future gives the job's place up. Callbacks of the future run without the cache's lock.
        """
        wanted = _Wanted(tuple(versions), {version.digest: self._needs(version) for version in versions})
        wanted.future.add_done_callback(self._leave)
        with self._lock:
            self._line.append(wanted)
            lease = self._grant(wanted) if self._all_resident(wanted) and self._may_pass(wanted) else None
        if lease is None:
            self._wake()
        else:
            self._metrics.cache_hits.labels("device").inc(len(versions))
            self._hand_over(wanted, lease)
        return wanted.future

    def release(self, lease: Lease) -> None:
        """Gives a lease back; jobs that wait for room are tried again."""
        with self._lock:
            for digest in (*lease.rows, *lease.vectors):
                self._let_go(self._resident[digest])
        self._wake()

    def evict_unused(self) -> None:
        """Puts out every adapter that no job uses."""
        with self._lock, suppress(PoolFull):
            while True:
                self._evict(lambda _: True)

    def close(self) -> None:
        """Ends the loader's thread."""
        with self._lock:
            self._closed = True
        self._loader.shutdown(wait=True, cancel_futures=True)

    @property
    def _rooms(self) -> Mapping[str, Room]:
        return {name: room for group in self._groups.values() for name, room in group.rooms.items()}

    def _most(self, room: str) -> int:
        """What one batch row can use at once."""
        if room.endswith((OUTPUTS, INPUTS)):
            return G_CLASSES[-1]
        return self._max_rank if room in self._groups else sys.maxsize

    def _needs(self, version: VersionRecord) -> dict[str, int]:
        """What a version takes of each room."""
        by_group: dict[str, list[MatchedModule]] = {}
        for module in version.report.matched:
            by_group.setdefault(self._group_of[module.module], []).append(module)
        total: Counter[str] = Counter()
        for name, modules in by_group.items():
            total.update(self._groups[name].needs(modules))
        return dict(total)

    def _all_resident(self, wanted: _Wanted) -> bool:
        return all(version.digest in self._resident for version in wanted.versions)

    def _may_pass(self, wanted: _Wanted) -> bool:
        """Whether it is this job's turn. Call with the lock held."""
        first = self._line[0]
        passed = 0 if first is wanted or first.passed is None else first.passed
        return passed < (HITS_PAST if self._all_resident(wanted) else LOADS_PAST)

    def _fits(self, wanted: _Wanted) -> bool:
        """Whether its adapters find room beside those in use. Call with the lock held."""
        missing = [needs for digest, needs in wanted.needs.items() if digest not in self._resident]
        vectors = {v.digest: _vector_bytes(v) for v in wanted.versions if v.digest not in self._resident}
        kept = Counter[str]()
        for digest in [digest for digest in wanted.needs if digest in self._idle]:
            kept.update(_sizes(self._idle[digest]))
        in_use = self._vector_bytes - self._spare[_VECTORS] + kept[_VECTORS]
        return sum(vectors.values()) + in_use <= VECTOR_BYTES and all(
            sum(needs.get(name, 0) for needs in missing) + kept[name] <= room.free + self._spare[name]
            for name, room in self._rooms.items()
        )

    def _grant(self, wanted: _Wanted) -> Lease:
        """Takes the job out of the line and counts it as a user of all its versions. Call with the lock held, all
        resident."""
        place = self._line.index(wanted)
        for ahead in self._line[:place]:
            if ahead.passed is not None:
                ahead.passed += 1
        del self._line[place]
        granted: dict[str, _Resident] = {}
        for version in wanted.versions:
            resident = self._resident[version.digest]
            if version.digest not in granted:
                self._take_up(resident)
            granted[version.digest] = resident
        return Lease(
            {digest: resident.rows for digest, resident in granted.items() if not resident.vectors},
            {digest: resident.vectors for digest, resident in granted.items() if resident.vectors},
        )

    def _hand_over(self, wanted: _Wanted, lease: Lease) -> None:
        """Call without the lock: the future's callbacks may call back into the cache."""
        if wanted.future.set_running_or_notify_cancel():
            wanted.future.set_result(lease)
        else:
            self.release(lease)

    def _wake(self) -> None:
        """Has the loader's thread look at the line."""
        with self._lock:
            if self._line and not self._closed:
                self._loader.submit(self._serve)

    def _leave(self, future: "Future[Lease]") -> None:
        """A job that was cancelled leaves the line, and perhaps others move up."""
        if future.cancelled():
            with self._lock:
                self._line = [wanted for wanted in self._line if wanted.future is not future]
            self._wake()

    def _serve(self) -> None:
        """On the loader's thread: serves whoever may and can be, in the order they came."""
        with self._lock:
            line = list(self._line)
        for wanted in line:
            with self._lock:
                if wanted not in self._line or not self._may_pass(wanted):
                    continue
                if not self._fits(wanted):
                    wanted.passed = wanted.passed or 0
                    continue
            self._load(wanted)

    def _load(self, wanted: _Wanted) -> None:
        """Brings in what is missing and grants; leaves the job in line where others took the room meanwhile."""
        try:
            lease = self._bring_in(wanted)
        except PoolFull:
            return  # whoever took it will give it back, and the line is looked at again
        except Exception as error:
            with self._lock:
                self._line = [other for other in self._line if other is not wanted]
            if wanted.future.set_running_or_notify_cancel():
                wanted.future.set_exception(error)
        else:
            if lease is not None:
                self._hand_over(wanted, lease)

    def _bring_in(self, wanted: _Wanted) -> Lease | None:
        """The lease, or None where the job was cancelled meanwhile."""
        held: list[_Resident] = []
        try:
            # What is there first, lest it is put out for the rest.
            for version in sorted(wanted.versions, key=lambda version: version.digest not in self._resident):
                held.append(self._hold(version))
            with self._lock:
                return self._grant(wanted) if wanted in self._line else None
        finally:
            with self._lock:
                for resident in held:
                    self._let_go(resident)

    def _hold(self, version: VersionRecord) -> _Resident:
        """The version on the device, loaded if need be, with one user more so that it stays."""
        with self._lock:
            resident = self._resident.get(version.digest)
            if resident is not None:
                self._take_up(resident)
                self._metrics.cache_hits.labels("device").inc()
                return resident
            rows = self._take(version)
        started = time.monotonic()
        self._metrics.cache_misses.labels("device").inc()
        try:
            vectors = self._bring(version, rows)
        except Exception as error:
            with self._lock:
                self._give_back(rows, _vector_bytes(version))
            raise _told(error, version) from error
        resident = _Resident(version.digest, rows, vectors, users=1)
        with self._lock:
            self._resident[version.digest] = resident
            self._metrics.resident.labels("device").set(len(self._resident))
        self._metrics.load_seconds.observe(time.monotonic() - started)
        return resident

    def _bring(self, version: VersionRecord, rows: Rows) -> Vectors:
        """Reads the compiled file: an embedding's vectors onto the device, others' factors under their numbers."""
        if version.embedding is not None:
            return self._read(version, lambda file: _read_vectors(file, self._device))
        factors = self._read(version, _read)
        for name, group in self._groups.items():
            mine = {path: each for path, each in factors.items() if self._group_of[path] == name}
            if mine:
                group.write(rows, mine)
        return {}

    def _read(self, version: VersionRecord, read: Callable[[Path], T]) -> T:
        """Of the compiled file; once more where it went away between the store's check and the reading."""
        try:
            return read(self._compiled(version))
        except FileNotFoundError:
            return read(self._compiled(version))

    def _give_back(self, rows: Rows, vector_bytes: int) -> None:
        rooms = self._rooms
        for name, numbers in rows.items():
            rooms[name].give_back(numbers)
        self._vector_bytes -= vector_bytes

    def _take(self, version: VersionRecord) -> dict[str, Sequence[int]]:
        """Numbers in every room and room for vectors, evicting unused versions until they fit; all or none."""
        needs, rooms, vector_bytes = self._needs(version), self._rooms, _vector_bytes(version)
        while any(rooms[name].free < count for name, count in needs.items()):
            self._evict(lambda resident: bool(resident.rows))
        while self._vector_bytes + vector_bytes > VECTOR_BYTES:
            self._evict(lambda resident: bool(resident.vectors))
        self._vector_bytes += vector_bytes
        return {name: rooms[name].take(count) for name, count in needs.items()}

    def _take_up(self, resident: _Resident) -> None:
        """One user more. Call with the lock held."""
        if self._idle.pop(resident.digest, None) is not None:
            self._spare.subtract(_sizes(resident))
        resident.users += 1

    def _let_go(self, resident: _Resident) -> None:
        """One user less. Call with the lock held."""
        resident.users -= 1
        if resident.users == 0:
            self._idle[resident.digest] = resident
            self._spare.update(_sizes(resident))

    def _evict(self, holding: Callable[[_Resident], bool]) -> None:
        """Puts out the one of these that was left longest ago."""
        resident = next((resident for resident in self._idle.values() if holding(resident)), None)
        if resident is None:
            raise PoolFull(1, 0)
        del self._resident[resident.digest], self._idle[resident.digest]
        self._spare.subtract(_sizes(resident))
        self._give_back(resident.rows, resident.vector_bytes)
        self._metrics.cache_evictions.labels("device").inc()


def _sizes(resident: _Resident) -> dict[str, int]:
    """Its numbers by room, and the bytes of its vectors."""
    return {_VECTORS: resident.vector_bytes} | {name: len(rows) for name, rows in resident.rows.items()}


def _vector_bytes(version: VersionRecord) -> int:
    """Of an embedding's vectors in fp32; 0 of others."""
    embedding = version.embedding
    return 0 if embedding is None else 4 * embedding.vectors * sum(embedding.widths.values())


def _told(error: Exception, version: VersionRecord) -> Exception:
    """What a client hears: the store's own errors with the adapter's name, others without their insides."""
    name = f"{version.adapter}@{version.number}"
    match error:
        case DataLoss():
            return DataLoss(error.digest, f"{error.cause}; adapter {name} cannot be loaded")
        case StoreError():
            return error
        case _ if isinstance(error, RAN_OUT):
            return OutOfMemory(f"adapter {name} does not fit into device memory")
        case _:
            _log.error("an adapter could not be loaded", exc_info=error)
            return PictureFailed(f"adapter {name} could not be loaded: {type(error).__name__}")


def _read_vectors(file: Path, device: torch.device) -> Vectors:
    return {name: each.to(device) for name, each in load(file.read_bytes()).items() if name != SEAL}
