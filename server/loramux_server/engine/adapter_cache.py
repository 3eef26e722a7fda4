"""Adapters onto the device and off it: a line of jobs, a thread that writes the pool, leases.

Takes versions of the store; gives leases that hold their numbers, or the vectors of embeddings, until released. What
it writes it has from the host tier, which reads on threads of its own: loading never holds up a tick, and a version
that is still being read holds up no other. It knows no request and no queue; who may go next is `waiting_line`'s, what
is resident `device_tier`'s.
"""

import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from loramux_kernels import PoolFull
from loramux_server.engine.blends import Rows, Vectors
from loramux_server.engine.compiled_reader import HostAdapter
from loramux_server.engine.device_tier import DeviceTier, Lease, Resident
from loramux_server.engine.host_tier import HostTier
from loramux_server.engine.layer_group import LayerGroup
from loramux_server.engine.load_errors import told
from loramux_server.engine.waiting_line import Waiting, WaitingLine
from loramux_server.errors import Incompatible, LoraMuxError, PictureFailed
from loramux_server.metrics import Metrics
from loramux_store.errors import StoreError
from loramux_store.record import VersionRecord

_log = logging.getLogger(__name__)


class AdapterCache:
    """Versions on the device, and the jobs that wait for some. Safe for several threads.

    Jobs stand in line. One whose adapters are all there goes ahead at once, one for whose adapters there is no room is
    passed, so often as the line allows; one whose adapters are still being read is passed by any number.

    max_rank: of a batch row in a layer group; place: where vectors are kept.
    """

    def __init__(
        self,
        groups: Mapping[str, LayerGroup],
        host: HostTier,
        metrics: Metrics,
        max_rank: int,
        place: torch.device,
    ) -> None:
        self.device = DeviceTier(groups, metrics, max_rank)
        self.host = host
        self._groups = groups
        self._metrics = metrics
        self._place = place
        self._lock = threading.Lock()
        self._line = WaitingLine()
        self._closed = False
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="adapter-loader")

    def check(self, blends: Sequence[Sequence[VersionRecord]]) -> None:
        """Refuses what one job asks for where it can never fit.

        Raises:
            Incompatible: see `DeviceTier.check`.
        """
        self.device.check(blends)

    def has(self, digest: str) -> bool:
        """Whether a version is on the device."""
        return digest in self.device.residents

    def request(self, versions: Sequence[VersionRecord]) -> "Future[Lease]":
        """A lease on these versions, once all of them have rows; all are loaded or none is. What is missing begins to
        be read at once.

        Cancelling the future gives the job's place up. Callbacks of the future run without the cache's lock.
        """
        waiting = Waiting(tuple(versions), {version.digest: self.device.needs(version) for version in versions})
        waiting.future.add_done_callback(lambda future: self._leave(waiting) if future.cancelled() else None)
        with self._lock:
            self._line.join(waiting)
            missing = self._missing(waiting)
            lease = self._grant(waiting) if not missing and self._line.may_pass(waiting, loaded=True) else None
        self._metrics.cache_hits.labels("device").inc(len(waiting.needs) - len(missing))
        self._metrics.cache_misses.labels("device").inc(len(missing))
        if lease is None:
            for version in missing:
                self.host.look_up(version.digest)
                self._read_ahead(waiting, version, urgent=False)
            self._wake()
        else:
            self._hand_over(waiting, lease)
        return waiting.future

    def pin(self, version: VersionRecord) -> None:
        """Counts a version as one that is kept on the device for good; whoever pins it holds a lease. Jobs in line
        that can never be served beside it hear so.

        Raises:
            PinTooLarge: where pins would take more than their share.
        """
        with self._lock:
            self.device.pin(version)
            hopeless = [waiting for waiting in self._line if not self.device.can_ever_fit(waiting.needs)]
        for waiting in hopeless:
            self._fail(waiting, Incompatible("BLEND_TOO_LARGE", "the blend no longer fits beside what is pinned now"))

    @property
    def on_device(self) -> list[VersionRecord]:
        """Versions that are on the device now."""
        with self._lock:
            return [resident.version for resident in self.device.residents.values()]

    def unpin(self, digest: str) -> None:
        """Counts it so no longer."""
        with self._lock:
            self.device.unpin(digest)

    def drop(self, digests: Collection[str]) -> None:
        """Puts these out of both tiers where nobody uses them: their adapter was deleted."""
        with self._lock:
            self.device.drop(digests)
        self.host.drop(digests)

    def release(self, lease: Lease) -> None:
        """Gives a lease back; jobs that wait for room are tried again."""
        with self._lock:
            for digest in lease.rows:
                self.device.let_go(digest)
        self._wake()

    def evict_unused(self) -> None:
        """Puts every adapter that no job uses out of both tiers."""
        with self._lock:
            self.device.evict_unused()
        self.host.evict_unused()

    def close(self) -> None:
        """Ends the threads of both tiers."""
        with self._lock:
            self._closed = True
        self._loader.shutdown(wait=True, cancel_futures=True)
        self.host.close()

    def _grant(self, waiting: Waiting) -> Lease:
        """Takes the job out of the line and counts it as a user of all its versions. Call with the lock held, all
        resident."""
        self._line.serve(waiting)
        return self.device.lease(waiting.versions)

    def _hand_over(self, waiting: Waiting, lease: Lease) -> None:
        """Call without the lock: the future's callbacks may call back into the cache."""
        self._stop_reading(waiting)
        if waiting.future.set_running_or_notify_cancel():
            waiting.future.set_result(lease)
        else:
            self.release(lease)

    def _fail(self, waiting: Waiting, error: Exception) -> None:
        """Call without the lock."""
        with self._lock:
            self._line.leave(waiting)
        self._stop_reading(waiting)
        if waiting.future.set_running_or_notify_cancel():
            waiting.future.set_exception(error)

    def _wake(self) -> None:
        """Has the loader's thread look at the line."""
        with self._lock:
            if len(self._line) and not self._closed:
                self._loader.submit(self._serve)

    def _leave(self, waiting: Waiting) -> None:
        """A job that was cancelled leaves the line, and perhaps others move up."""
        with self._lock:
            self._line.leave(waiting)
        self._stop_reading(waiting)
        self._wake()

    def _serve(self) -> None:
        """On the loader's thread: serves whoever may and can be, in the order they came."""
        with self._lock:
            line = list(self._line)
        first = True  # of those whose adapters must still be read
        for waiting in line:
            try:
                if self._can_be_served(waiting):
                    if self._is_read(waiting, urgent=first):
                        self._load(waiting)
                    else:
                        first = False
            except Exception as error:  # a fault in here: whoever waits must hear of it all the same
                _log.exception("an adapter could not be loaded")
                self._fail(waiting, PictureFailed(f"its adapters could not be loaded: {type(error).__name__}"))

    def _can_be_served(self, waiting: Waiting) -> bool:
        with self._lock:
            if waiting not in self._line:
                return False
            if not self._line.may_pass(waiting, loaded=self.device.has(waiting.versions)):
                return False
            if not self.device.fits(waiting.needs):
                self._line.no_room(waiting)
                return False
        return True

    def _is_read(self, waiting: Waiting, *, urgent: bool) -> bool:
        """Whether all that is not on the device is in host memory, or has failed to get there. What was not read ahead
        for want of room is now, if urgent."""
        with self._lock:
            missing = self._missing(waiting)
        for version in missing:
            if version.digest not in waiting.ahead:
                self._read_ahead(waiting, version, urgent=urgent)
        entries = [waiting.ahead.get(version.digest) for version in missing]
        return all(entry is not None and entry.future.done() for entry in entries)

    def _missing(self, waiting: Waiting) -> list[VersionRecord]:
        """Each once. Call with the lock held."""
        versions = {version.digest: version for version in waiting.versions}
        return [version for digest, version in versions.items() if digest not in self.device.residents]

    def _read_ahead(self, waiting: Waiting, version: VersionRecord, *, urgent: bool) -> None:
        """Holds a version in host memory for a job, as long as it is in line; only if urgent where there is no room."""
        entry = self.host.hold(version) if urgent else self.host.prefetch(version)
        if entry is None:
            return
        with self._lock:
            kept = waiting in self._line and version.digest not in waiting.ahead
            if kept:
                waiting.ahead[version.digest] = entry
        if kept:
            entry.future.add_done_callback(lambda _: self._wake())
        else:
            self.host.release(entry)

    def _stop_reading(self, waiting: Waiting) -> None:
        """Lets go of what a job that left the line held in host memory. Call without the lock."""
        with self._lock:
            ahead, waiting.ahead = waiting.ahead, {}
        for entry in ahead.values():
            self.host.release(entry)

    def _load(self, waiting: Waiting) -> None:
        """Brings in what is missing and grants; leaves the job in line where others took the room meanwhile."""
        try:
            lease = self._bring_in(waiting)
        except PoolFull:
            return  # whoever took it will give it back, and the line is looked at again
        except (LoraMuxError, StoreError) as error:
            self._fail(waiting, error)
        else:
            if lease is not None:
                self._hand_over(waiting, lease)

    def _bring_in(self, waiting: Waiting) -> Lease | None:
        """The lease, or None where the job was cancelled meanwhile."""
        held: list[Resident] = []
        try:
            # What is there first, lest it is put out for the rest.
            for version in sorted(waiting.versions, key=lambda version: not self.has(version.digest)):
                held.append(self._hold(waiting, version))
            with self._lock:
                return self._grant(waiting) if waiting in self._line else None
        finally:
            with self._lock:
                for resident in held:
                    self.device.let_go(resident.digest)

    def _hold(self, waiting: Waiting, version: VersionRecord) -> Resident:
        """The version on the device, written if need be, with one user more so that it stays."""
        with self._lock:
            if self.has(version.digest):
                return self.device.take_up(version.digest)
            entry = waiting.ahead.get(version.digest)
        if entry is None:  # put out since it was looked for, or the job was cancelled
            self._wake()
            raise PoolFull(1, 0)
        adapter = entry.future.result(0)
        with self._lock:
            rows = self.device.take(version)
        try:
            with self._metrics.load_seconds.labels("copy").time():
                vectors = self._write(adapter, rows)
        except Exception as error:
            with self._lock:
                self.device.give_back(rows)
            raise told(error, version, "device") from error
        with self._lock:
            return self.device.add(version, rows, vectors)

    def _write(self, adapter: HostAdapter, rows: Rows) -> Vectors:
        """Factors under their numbers, and the vectors of embeddings onto the device."""
        for name, group in self._groups.items():
            mine = {path: each for path, each in adapter.factors.items() if self.device.group_of[path] == name}
            if mine:
                group.write(rows, mine)
        return tuple({name: each.to(self._place) for name, each in vectors.items()} for vectors in adapter.vectors)
