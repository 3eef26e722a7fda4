"""Adapters onto the device and off it: a line of jobs, a thread that loads, leases.

Takes versions of the store; gives leases that hold their numbers, or the vectors of embeddings, until released. It
reads compiled files and writes their factors on a thread of its own, so that loading never holds up a tick. It knows no
request and no queue; who may go next is `waiting_line`'s, what is resident `device_tier`'s.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load

from loramux_kernels import PoolFull
from loramux_server.engine.blends import Rows, Vectors
from loramux_server.engine.device_memory import RAN_OUT
from loramux_server.engine.device_tier import DeviceTier, Lease, Resident, vector_bytes
from loramux_server.engine.layer_group import LayerGroup
from loramux_server.engine.module_factors import ModuleFactors
from loramux_server.engine.module_factors import read_compiled as _read
from loramux_server.engine.waiting_line import Waiting, WaitingLine
from loramux_server.errors import LoraMuxError, OutOfMemory, PictureFailed
from loramux_server.metrics import Metrics
from loramux_store.errors import DataLoss, StoreError
from loramux_store.record import VersionRecord
from loramux_store.seal import SEAL

_log = logging.getLogger(__name__)

T = TypeVar("T")

Factors = dict[str, ModuleFactors]
"""By module path."""


class AdapterCache:
    """Versions on the device, and the jobs that wait for some. Safe for several threads.

    Jobs stand in line. One whose adapters are all there goes ahead at once, one for whose adapters there is no room is
    passed, so often as the line allows.

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
        self.device = DeviceTier(groups, metrics, max_rank)
        self.check = self.device.check
        self._groups = groups
        self._compiled = compiled
        self._metrics = metrics
        self._place = device
        self._lock = threading.Lock()
        self._line = WaitingLine()
        self._closed = False
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="adapter-loader")

    def request(self, versions: Sequence[VersionRecord]) -> "Future[Lease]":
        """A lease on these versions, once all of them have rows; all are loaded or none is.

        Cancelling the future gives the job's place up. Callbacks of the future run without the cache's lock.
        """
        waiting = Waiting(tuple(versions), {version.digest: self.device.needs(version) for version in versions})
        waiting.future.add_done_callback(lambda future: self._leave(waiting) if future.cancelled() else None)
        with self._lock:
            self._line.join(waiting)
            there = self.device.has(versions) and self._line.may_pass(waiting, loaded=True)
            lease = self._grant(waiting) if there else None
        if lease is None:
            self._wake()
        else:
            self._metrics.cache_hits.labels("device").inc(len(versions))
            self._hand_over(waiting, lease)
        return waiting.future

    def release(self, lease: Lease) -> None:
        """Gives a lease back; jobs that wait for room are tried again."""
        with self._lock:
            for digest in (*lease.rows, *lease.vectors):
                self.device.let_go(digest)
        self._wake()

    def evict_unused(self) -> None:
        """Puts out every adapter that no job uses."""
        with self._lock:
            self.device.evict_unused()

    def close(self) -> None:
        """Ends the loader's thread."""
        with self._lock:
            self._closed = True
        self._loader.shutdown(wait=True, cancel_futures=True)

    def _grant(self, waiting: Waiting) -> Lease:
        """Takes the job out of the line and counts it as a user of all its versions. Call with the lock held, all
        resident."""
        self._line.serve(waiting)
        return self.device.lease(waiting.versions)

    def _hand_over(self, waiting: Waiting, lease: Lease) -> None:
        """Call without the lock: the future's callbacks may call back into the cache."""
        if waiting.future.set_running_or_notify_cancel():
            waiting.future.set_result(lease)
        else:
            self.release(lease)

    def _fail(self, waiting: Waiting, error: Exception) -> None:
        """Call without the lock."""
        with self._lock:
            self._line.leave(waiting)
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
        self._wake()

    def _serve(self) -> None:
        """On the loader's thread: serves whoever may and can be, in the order they came."""
        with self._lock:
            line = list(self._line)
        for waiting in line:
            try:
                if self._can_be_served(waiting):
                    self._load(waiting)
            except Exception as error:  # a fault in here: whoever waits must hear of it all the same
                _log.exception("an adapter could not be loaded")
                self._fail(waiting, PictureFailed(f"its adapters could not be loaded: {type(error).__name__}"))

    def _can_be_served(self, waiting: Waiting) -> bool:
        with self._lock:
            if waiting not in self._line:
                return False
            if not self._line.may_pass(waiting, loaded=self.device.has(waiting.versions)):
                return False
            if not self.device.fits(waiting.versions, waiting.needs):
                self._line.no_room(waiting)
                return False
        return True

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
            for version in sorted(waiting.versions, key=lambda version: not self.device.has([version])):
                held.append(self._hold(version))
            with self._lock:
                return self._grant(waiting) if waiting in self._line else None
        finally:
            with self._lock:
                for resident in held:
                    self.device.let_go(resident.digest)

    def _hold(self, version: VersionRecord) -> Resident:
        """The version on the device, loaded if need be, with one user more so that it stays."""
        with self._lock:
            if self.device.has([version]):
                self._metrics.cache_hits.labels("device").inc()
                return self.device.take_up(version.digest)
            rows = self.device.take(version)
        started = time.monotonic()
        self._metrics.cache_misses.labels("device").inc()
        try:
            vectors = self._bring(version, rows)
        except Exception as error:
            with self._lock:
                self.device.give_back(rows, vector_bytes(version))
            raise _told(error, version) from error
        with self._lock:
            resident = self.device.add(version, rows, vectors)
        self._metrics.load_seconds.observe(time.monotonic() - started)
        return resident

    def _bring(self, version: VersionRecord, rows: Rows) -> Vectors:
        """Reads the compiled file: an embedding's vectors onto the device, others' factors under their numbers."""
        if version.embedding is not None:
            return self._read(version, lambda file: _read_vectors(file, self._place))
        factors = self._read(version, _read)
        for name, group in self._groups.items():
            mine = {path: each for path, each in factors.items() if self.device.group_of[path] == name}
            if mine:
                group.write(rows, mine)
        return {}

    def _read(self, version: VersionRecord, read: Callable[[Path], T]) -> T:
        """Of the compiled file; once more where it went away between the store's check and the reading."""
        try:
            return read(self._compiled(version))
        except FileNotFoundError:
            return read(self._compiled(version))


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
