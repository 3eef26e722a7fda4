"""Thousands of streams that are open at once: health watches, and pictures that wait or are drawn.

Takes a server on this machine; gives how long a health check takes meanwhile, on a connection of its own. Channels of
one process share a connection unless they are told not to; the kernel says how many the server has.
"""

import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loramux_client import picture_messages, rpcs
from loramux_client.pictures import ImageReady, Started
from loramux_server.bench.harness import Row

_STEPS = 20
_PERIOD_S = 0.05
_ESTABLISHED = "01"  # of the kernel's states of a connection


@dataclass(frozen=True, slots=True)
class Crowd:
    """connections: as many with so many watches each, and as many with so many pictures."""

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
        AssertionError: where a stream ends before it should, or connections are fewer than said.
    """
    async with AsyncExitStack() as stack:
        own = [await stack.enter_async_context(_own_connection(target)) for _ in range(2 * crowd.connections + 1)]
        alone, watching, asking = own[0], own[1 : crowd.connections + 1], own[crowd.connections + 1 :]
        watches = [_watch(channel) for channel in watching for _ in range(crowd.watches)]
        first = [await watch.read() for watch in watches]
        assert all(answer.status == health_pb2.HealthCheckResponse.SERVING for answer in first)
        drawing = [asyncio.create_task(_draw(channel)) for channel in asking for _ in range(crowd.pictures)]
        await alone.channel_ready()
        checks = await _checks(alone, drawing)
        drawn = await asyncio.gather(*drawing)
        open_still, connections = sum(not watch.done() for watch in watches), _connections(target)
        for watch in watches:
            watch.cancel()
    assert open_still == len(watches) and all(drawn), "streams ended early"
    assert connections == len(own), f"{connections} connections, expected {len(own)}"
    what = f"{crowd.streams} open streams on {2 * crowd.connections} connections"
    return [
        Row(f"{what}, health check, median", statistics.median(checks) * 1e3, "ms", "<=100"),
        Row(f"{what}, health check, worst", max(checks) * 1e3, "ms"),
    ]


def _own_connection(target: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)])


def _connections(target: str) -> int:
    """Of clients, as the kernel lists them at the server's end."""
    port = int(target.rpartition(":")[2])
    listed = (Path("/proc/net", name).read_text().splitlines()[1:] for name in ("tcp", "tcp6"))
    ends = [row.split() for rows in listed for row in rows]
    return sum(int(local.rpartition(":")[2], 16) == port and state == _ESTABLISHED for _, local, _, state, *_ in ends)


def _watch(channel: grpc.aio.Channel) -> Any:
    stub: Any = health_pb2_grpc.HealthStub(channel)  # pyright: ignore[reportUnknownMemberType]
    return stub.Watch(health_pb2.HealthCheckRequest(service=""))


async def _draw(channel: grpc.aio.Channel) -> bool:
    """Whether the picture came, after all that comes before it."""
    rpc = rpcs.GENERATE_STREAM
    request = picture_messages.generate_request("a red apple", adapters={"ink": 0.5}, steps=_STEPS)
    call = channel.unary_stream(rpc.path, rpc.encode, rpc.decode)(request)
    kinds = [type(rpc.read(event)) async for event in call]
    return Started in kinds and ImageReady in kinds


async def _checks(channel: grpc.aio.Channel, drawing: list["asyncio.Task[bool]"]) -> list[float]:
    """Seconds of each health check, one after another."""
    taken: list[float] = []
    stub: Any = health_pb2_grpc.HealthStub(channel)  # pyright: ignore[reportUnknownMemberType]
    while not all(task.done() for task in drawing):
        started = time.perf_counter()
        await stub.Check(health_pb2.HealthCheckRequest(service=""))
        taken.append(time.perf_counter() - started)
        await asyncio.sleep(_PERIOD_S)
    return taken
