"""Whether the server can do its work: the runner's heart beats, and the store can be written to.

Takes questions to ask; tells gRPC's health service and whoever asks for readiness. It knows no requests. A runner that
stalls makes the server unready, so that callers go elsewhere until it beats again; whether it is dead is for liveness.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from grpc_health.v1 import health_pb2

from loramux_server.metrics import Metrics

PERIOD_S = 0.5
_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """What health is told of. names: of gRPC services that work while `works` says so; broken: what is wrong if not."""

    names: tuple[str, ...]
    works: Callable[[], bool]
    broken: str


class Watchdog:
    """Looks every half second."""

    def __init__(self, services: tuple[Service, ...], checks: Any, metrics: Metrics) -> None:
        self._services, self._checks, self._metrics = services, checks, metrics
        self._state = dict[str, bool]()

    @property
    def ready(self) -> bool:
        """Whether pictures could be drawn when it looked last; they can be while the store takes nothing in."""
        return self._state.get("", False)

    async def watch(self, stop: asyncio.Event) -> None:
        """Until `stop`."""
        while not stop.is_set():
            await self.look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), timeout=PERIOD_S)

    async def look(self) -> None:
        """Asks, and tells what has changed."""
        for service in self._services:
            works = await asyncio.to_thread(service.works)
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
