"""Brings adapters where somebody wants them ahead of any request, and keeps there what is pinned.

Takes references and tiers; asks the store what they mean and the caches of the engine to load it. A pin is a lease, or
a hold in host memory, that is kept for as long as the catalog has the pin and its reference means that version. It
knows no protobuf. For the event loop; the store's calls run on threads.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, Literal

import structlog

from loramux_server.engine.adapter_cache import AdapterCache
from loramux_server.engine.device_tier import Lease
from loramux_server.engine.host_tier import HostEntry
from loramux_server.errors import LoraMuxError
from loramux_server.metrics import Metrics
from loramux_store.errors import StoreError
from loramux_store.record import AdapterRecord, Tier, VersionRecord
from loramux_store.store import Store

PERIOD_S = 600.0
"""Between looks at the catalog though nothing was changed through this server: a pin that could not be met, or that a
command changed beside the server."""

Place = Literal["disk", "host", "device"]
_Key = tuple[str, Tier]
"""Digest and tier."""

_log = structlog.stdlib.get_logger(__name__)


class Tiers:
    """Preloads and pins.

    suits: refuses a version that the base cannot use.
    """

    def __init__(
        self, store: Store, adapters: AdapterCache, suits: Callable[[VersionRecord], None], metrics: Metrics
    ) -> None:
        self._store = store
        self._adapters = adapters
        self._suits = suits
        self._metrics = metrics
        self._held: dict[_Key, Callable[[], None]] = {}  # each with what lets go of it
        self._dropped = set[str]()
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()

    def of(self, digest: str) -> Place:
        """Where a version is now, at best."""
        if self._adapters.has(digest):
            return "device"
        return "host" if self._adapters.host.has(digest) else "disk"

    async def preload(self, reference: str, tier: Tier) -> VersionRecord:
        """Has a version brought into a tier; returns when it is there. Nothing keeps it there.

        Raises:
            NotFound: the reference means nothing.
            Incompatible: the version is of another base, or larger than the device's room.
        """
        version = await self._meant(reference)
        if tier == "host":
            self._adapters.host.look_up(version.digest)
            entry = self._adapters.host.hold(version)
            try:
                await asyncio.wrap_future(entry.future)
            finally:
                self._adapters.host.release(entry)
        else:
            self._adapters.check([[version]])
            leased = self._adapters.request([version])
            leased.add_done_callback(self._release)
            await asyncio.wrap_future(leased)
        return version

    async def pin(self, reference: str, tier: Tier, who: str) -> AdapterRecord:
        """Keeps what a reference means in a tier, from now on and after a restart. It is there when this returns.

        Raises:
            NotFound, Incompatible: as of `preload`.
            PinTooLarge: pins would take more than their share of the tier.
        """
        async with self._lock:
            version = await self._meant(reference)
            try:
                await self._keep(version, tier)
                return await asyncio.to_thread(self._store.pin_adapter, reference, tier, who=who)
            finally:
                self.changed()  # what it meant before, or what was brought in for nothing, is let go

    async def unpin(self, reference: str, who: str) -> AdapterRecord:
        """Keeps it no longer. It stays where it is until others need the room.

        Raises:
            NotFound, PinNotFound: there is no such pin.
        """
        record = await asyncio.to_thread(self._store.unpin_adapter, reference, who=who)
        self.changed()
        return record

    def changed(self, deleted: Collection[str] = ()) -> None:
        """References may mean something else now. deleted: digests that nobody is to use any more."""
        self._dropped.update(deleted)
        self._changed.set()

    async def keep(self, stop: asyncio.Event, period_s: float = PERIOD_S) -> None:
        """Until `stop`: does what the catalog's pins say, at once, after every change and every so often."""
        stopping = asyncio.create_task(stop.wait())
        while not stopping.done():
            self._changed.clear()
            try:
                await _until(stopping, self.meet())
            except Exception:  # a fault in here is no reason to stop the server
                _log.exception("pins could not be met")
            await _until(stopping, asyncio.wait_for(self._changed.wait(), period_s))

    async def meet(self) -> None:
        """Lets go of what is pinned no longer, and brings in what is. A pin that cannot be met is told in the log and
        counted; it stands in nobody's way, and is tried again the next time."""
        async with self._lock:
            try:
                wanted, unmet = await self._wanted()
            except StoreError as error:
                _log.error("pins could not be read", error=str(error))
                return
            for key in self._held.keys() - wanted.keys():
                self._held.pop(key)()
            dropped, self._dropped = self._dropped, set[str]()
            self._adapters.drop(dropped)
            keeping = [self._keep(version, tier) for (_, tier), version in wanted.items()]
            for (_, tier), ended in zip(wanted, await asyncio.gather(*keeping, return_exceptions=True), strict=True):
                if isinstance(ended, Exception):
                    unmet += 1
                    _log.warning("a pin cannot be met", tier=tier, error=str(ended))
            self._metrics.pins_unmet.set(unmet)
            self._gauge()

    async def _wanted(self) -> tuple[Mapping[_Key, VersionRecord], int]:
        """What pins mean now, and how many mean nothing that can be kept."""
        wanted: dict[_Key, VersionRecord] = {}
        unmet = 0
        for pin in await asyncio.to_thread(self._store.pins):
            try:
                version = await self._meant(pin.reference)
            except (StoreError, LoraMuxError) as error:
                unmet += 1
                _log.warning("a pin cannot be met", reference=pin.reference, tier=pin.tier, error=str(error))
            else:
                wanted[version.digest, pin.tier] = version
        return wanted, unmet

    async def _meant(self, reference: str) -> VersionRecord:
        version = await asyncio.to_thread(self._store.resolve, reference)
        self._suits(version)
        return version

    async def _keep(self, version: VersionRecord, tier: Tier) -> None:
        """Brings a version in for good; once, whatever number of references mean it."""
        if (version.digest, tier) in self._held:
            return
        keep = self._keep_in_host if tier == "host" else self._keep_on_device
        self._held[version.digest, tier] = await keep(version)
        self._gauge()

    async def _keep_in_host(self, version: VersionRecord) -> Callable[[], None]:
        host = self._adapters.host
        host.pin(version)
        entry = host.hold(version)
        let_go = partial(self._let_go_of_host, version.digest, entry)
        try:
            await asyncio.wrap_future(entry.future)
        except BaseException:
            let_go()
            raise
        return let_go

    async def _keep_on_device(self, version: VersionRecord) -> Callable[[], None]:
        self._adapters.pin(version)
        leased = self._adapters.request([version])
        try:
            lease = await asyncio.wrap_future(leased)
        except BaseException:
            self._adapters.unpin(version.digest)
            leased.add_done_callback(self._release)  # it may have come all the same
            raise
        return partial(self._let_go_of_device, version.digest, lease)

    def _let_go_of_host(self, digest: str, entry: HostEntry) -> None:
        self._adapters.host.unpin(digest)
        self._adapters.host.release(entry)

    def _let_go_of_device(self, digest: str, lease: Lease) -> None:
        self._adapters.unpin(digest)
        self._adapters.release(lease)

    def _release(self, leased: "Future[Lease]") -> None:
        if not leased.cancelled() and leased.exception() is None:
            self._adapters.release(leased.result())

    def _gauge(self) -> None:
        for tier in ("host", "device"):
            self._metrics.pinned.labels(tier).set(sum(held == tier for _, held in self._held))


async def _until(stopping: "asyncio.Task[Any]", work: Coroutine[Any, Any, object]) -> None:
    """Does it, or as much of it as can be done until then."""
    task = asyncio.create_task(work)
    await asyncio.wait({stopping, task}, return_when=asyncio.FIRST_COMPLETED)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, TimeoutError):
        await task
