"""Whether the server can do its work: the runner's heart beats, and the store can be written to.

Takes questions to ask; tells gRPC's health service and whoever asks for readiness. It knows no requests. A runner that
stalls makes the server unready, so that callers go elsewhere until it beats again; whether it is dead is for liveness.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import structlog
from grpc_health.v1 import health_pb2

from loramux_server.metrics import Metrics

PERIOD_S = 0.5
PATIENCE_S = 10.0
"""For an answer of the disk. One that takes longer is failing, whatever it says in the end."""

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """What health is told of.

    names: of gRPC services that work while `works` says so; broken: what is wrong if not; on_disk: `works` waits for
    the disk.
    """

    names: tuple[str, ...]
    works: Callable[[], bool]
    broken: str
    on_disk: bool = False


class Watchdog:
    """Looks every half second, at each service by itself: a disk that hangs does not hide a runner that stalls."""

    def __init__(
        self, services: tuple[Service, ...], checks: Any, metrics: Metrics, patience_s: float = PATIENCE_S
    ) -> None:
        self._services, self._checks, self._metrics = services, checks, metrics
        self._patience_s = patience_s
        self._state = dict[str, bool]()
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="watchdog")  # of its own, lest calls hold all threads

    @property
    def ready(self) -> bool:
        """Whether pictures could be drawn when it looked last; they can be while the store takes nothing in."""
        return self._state.get("", False)

    async def watch(self, stop: asyncio.Event) -> None:
        """Until `stop`."""
        try:
            await asyncio.gather(*(self._watch(service, stop) for service in self._services))
        finally:
            self._disk.shutdown(wait=False)

    async def look(self) -> None:
        """Asks all of them once, and tells what has changed."""
        for service in self._services:
            await self._look(service)

    async def _watch(self, service: Service, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self._look(service)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), timeout=PERIOD_S)

    async def _look(self, service: Service) -> None:
        works = await self._asked_on_disk(service) if service.on_disk else service.works()
        await self._tell_all(service, works)

    async def _asked_on_disk(self, service: Service) -> bool:
        answer = asyncio.get_running_loop().run_in_executor(self._disk, service.works)
        await asyncio.wait({answer}, timeout=self._patience_s)
        if not answer.done():
            await self._tell_all(service, works=False)
        return await answer

    async def _tell_all(self, service: Service, works: bool) -> None:
        for name in service.names:
            await self._tell(name, works, service.broken)

    async def _tell(self, name: str, works: bool, broken: str) -> None:
        if self._state.get(name) is works:
            return
        if not works:
            _log.error("not serving", service=name or "all", because=broken)
        elif name in self._state:
            _log.warning("serving again", service=name or "all")
        self._state[name] = works
        self._metrics.service_up.labels(name or "all").set(works)
        status = health_pb2.HealthCheckResponse
        await self._checks.set(name, status.SERVING if works else status.NOT_SERVING)
