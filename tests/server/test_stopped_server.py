"""SIGTERM under load: what runs is finished or told, what comes is sent elsewhere, an upload goes on at the next
server."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from aftermath import Before, files, warm
from crowd import Heard, crowd
from grpc_health.v1 import health_pb2, health_pb2_grpc
from living import Living
from pausing import Pause
from processes import Serving, start
from small_adapters import small_adapter

from loramux_client import AsyncClient
from loramux_client.errors import Unavailable
from loramux_client.pictures import Done, ImageReady
from loramux_client.upload_source import CHUNK_BYTES

STREAMS = 4
FILE = small_adapter(1, "on its way", pad=4 * CHUNK_BYTES)


async def told(target: str, **asked: Any) -> list[object]:
    """The events of a stream; the error that ended it comes last."""
    events = list[object]()
    async with AsyncClient(target, timeout=600, retries=0) as client:
        try:
            async for event in client.stream("a red apple", **asked):
                events.append(event)
        except Unavailable as error:
            events.append(error)
    return events


async def watched(target: str) -> list[int]:
    """What a health watcher is told until its stream ends."""
    states = list[int]()
    async with grpc.aio.insecure_channel(target) as channel:
        try:
            async for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="")):
                states.append(answer.status)
        except grpc.aio.AioRpcError as error:
            assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    return states


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.05)


def loaded(serving: Serving) -> bool:
    """Some run while others, for whom a forward has no room, wait."""
    return serving.held()["images_running"] > 4


def sent_away(error: object) -> bool:
    return isinstance(error, Unavailable) and error.reason == "DRAINING" and error.retry_after == 1


async def test_sigterm_lets_finish_what_runs_and_waits(tmp_path: Path) -> None:
    serving = await start(tmp_path, "--max-rows", 4, "--drain-seconds", 120)
    await warm(serving.client, "ink", "glossy")
    pause, watching = Pause(), asyncio.create_task(watched(serving.target))
    async with AsyncClient(serving.target) as client, crowd(serving.target, ["ink", ""], count=2) as heard:
        pushing = asyncio.create_task(client.upload(FILE, "pushed", progress=pause))
        await pause.reached.wait()
        asked = {"steps": 20, "num_images": 2, "adapters": {"ink": 0.7}}
        streams = [asyncio.create_task(told(serving.target, **asked, seed=seed)) for seed in range(STREAMS)]
        await until(lambda: loaded(serving) and heard.pictures)
        drawn = len(heard.pictures)
        for _ in range(2):  # a second signal changes nothing
            serving.send(signal.SIGTERM)
            await until(lambda: heard.refusals)
        while_draining = Heard(heard.pictures[:], heard.refusals[:])
        stories = await asyncio.gather(*streams)
        while_draining.refusals += heard.refusals[len(while_draining.refusals) :]
        assert await serving.ended() == 0
    assert all(isinstance(story[-1], Done) for story in stories)
    assert all(sum(isinstance(event, ImageReady) for event in story) == 2 for story in stories)
    assert drawn and all(sent_away(refusal) for refusal in while_draining.refusals)
    status = health_pb2.HealthCheckResponse
    assert await watching == [status.SERVING, status.NOT_SERVING]
    await goes_on(tmp_path, serving.port, pause, pushing)


async def goes_on(store: Path, port: int, pause: Pause, pushing: "asyncio.Task[Any]") -> None:
    """At the next server, of which nothing is left afterwards either."""
    serving = await start(store, port=port)
    await warm(serving.client, "ink", "glossy")
    before = Before(serving)
    pause.go_on.set()
    assert (await pushing).created
    assert serving.metrics()["loramux_upload_bytes_total"] <= len(FILE) - CHUNK_BYTES, "only the rest came again"
    await before.is_again()
    assert await serving.stop() == 0


async def test_what_outlasts_the_drain_is_told(tmp_path: Path) -> None:
    serving = await start(tmp_path, "--max-rows", 4, "--drain-seconds", 0.3)
    await warm(serving.client, "ink")
    watching = asyncio.create_task(watched(serving.target))
    asked = {"steps": 100, "num_images": 2, "adapters": {"ink": 0.7}}
    streams = [asyncio.create_task(told(serving.target, **asked, seed=seed)) for seed in range(STREAMS)]
    unary = [asyncio.create_task(serving.client.generate("a dog", **asked, timeout=600)) for _ in range(2)]
    await until(lambda: loaded(serving))
    serving.send(signal.SIGTERM)
    ended = [story[-1] for story in await asyncio.gather(*streams)]
    ended += await asyncio.gather(*unary, return_exceptions=True)
    assert len(ended) == STREAMS + 2 and all(map(sent_away, ended)), ended
    assert await serving.ended() == 0
    assert len(await watching) == 2


async def test_a_stop_leaves_no_descriptor(tmp_path: Path) -> None:
    """Two servers one after the other in one process: the second, stopped under load, leaves as many as the first."""
    left = list[int]()
    for run in ("first", "second", "third"):
        living = Living(tmp_path / "store", drain_seconds=0.1)
        await living.start()
        streams = [asyncio.create_task(told(living.target, steps=200)) for _ in range(2)]
        await until(lambda living=living: living.app.runner._scheduler.running)
        await living.shut()
        assert all(sent_away(story[-1]) for story in await asyncio.gather(*streams)), run
        left.append(files(living.pid))
    assert left[2] <= left[1], left
