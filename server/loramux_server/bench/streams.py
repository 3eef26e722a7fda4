"""Thousands of streams that are open at once: health watches, and pictures that wait or are drawn.

Takes a server; gives how long a health check takes meanwhile. Every connection is one of a client's.
"""

import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loramux_client import AsyncClient
from loramux_client.pictures import ImageReady, Started
from loramux_server.bench.harness import Row

_STEPS = 20
_PERIOD_S = 0.05


@dataclass(frozen=True, slots=True)
class Crowd:
    """connections, each with so many watches and so many pictures."""

    connections: int = 20
    watches: int = 90
    pictures: int = 10

    @property
    def streams(self) -> int:
        """In all."""
        return self.connections * (self.watches + self.pictures)


async def measure(target: str, crowd: Crowd) -> list[Row]:
    """Until every picture is drawn.

    Raises:
        AssertionError: where a stream ends before it should.
    """
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(target)) for _ in range(crowd.connections)]
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]))
            for _ in range(crowd.connections)
        ]
        watches = [_watch(channel) for channel in channels for _ in range(crowd.watches)]
        first = [await watch.read() for watch in watches]
        assert all(answer.status == health_pb2.HealthCheckResponse.SERVING for answer in first)
        drawing = [asyncio.create_task(_draw(client)) for client in clients for _ in range(crowd.pictures)]
        checks = await _checks(target, drawing)
        drawn = await asyncio.gather(*drawing)
        open_still = sum(not watch.done() for watch in watches)
        for watch in watches:
            watch.cancel()
    assert open_still == len(watches) and all(drawn), "streams ended early"
    what = f"{crowd.streams} open streams on {2 * crowd.connections} connections"
    return [
        Row(f"{what}, health check, median", statistics.median(checks) * 1e3, "ms", "<=100"),
        Row(f"{what}, health check, worst", max(checks) * 1e3, "ms"),
    ]


def _watch(channel: grpc.aio.Channel) -> Any:
    stub: Any = health_pb2_grpc.HealthStub(channel)  # pyright: ignore[reportUnknownMemberType]
    return stub.Watch(health_pb2.HealthCheckRequest(service=""))


async def _draw(client: AsyncClient) -> bool:
    """Whether the picture came, after all that comes before it."""
    kinds = [type(event) async for event in client.stream("a red apple", adapters={"ink": 0.5}, steps=_STEPS)]
    return Started in kinds and ImageReady in kinds


async def _checks(target: str, drawing: list["asyncio.Task[bool]"]) -> list[float]:
    """Seconds of each health check, one after another, on a connection of its own."""
    taken: list[float] = []
    async with AsyncClient(target) as client:
        while not all(task.done() for task in drawing):
            started = time.perf_counter()
            await client.health("")
            taken.append(time.perf_counter() - started)
            await asyncio.sleep(_PERIOD_S)
    return taken
