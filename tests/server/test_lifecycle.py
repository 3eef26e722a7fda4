"""A server's life: ready, stalled, dead, stopping. The whole server in this process, on the built-in base."""

import asyncio
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from aftermath import Before, warm
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from living import PICTURES, SHELF, Living
from pausing import Pause
from small_adapters import small_adapter

from loramux_client import Client
from loramux_client.errors import DeadlineExceeded, Unavailable
from loramux_client.pictures import Done
from loramux_client.server_info import Health
from loramux_server import app as composition
from loramux_server.engine.pipeline import Base
from loramux_server.errors import BadBase
from loramux_server.http import AdminServer
from loramux_server.metrics import Metrics
from loramux_server.settings import Settings
from loramux_server.watchdog import Service, Watchdog
from loramux_store.record import Reclaimed
from loramux_store.store import Store

GENERATE = {"grpc_service": PICTURES, "grpc_method": "Generate"}


@pytest.fixture
async def living(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Living]:
    made = Living(tmp_path / "store", **getattr(request, "param", {}))
    await made.start()
    yield made
    await made.shut()


@pytest.mark.parametrize("living", [{"stall_seconds": 0.6}], indirect=True)
async def test_a_stalled_runner_makes_the_server_unready_until_it_goes_on(
    living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await living.http("/readyz") == 200 and await living.client.health("") is Health.SERVING
    await warm(living.client)
    before = Before(living)
    go_on, step = threading.Event(), living.app.engine.step

    def stalling(keys: Any) -> Any:
        assert go_on.wait(60)
        return step(keys)

    monkeypatch.setattr(living.app.engine, "step", stalling)
    drawing = asyncio.create_task(living.client.generate("a red apple", steps=2))
    left = asyncio.create_task(living.client.generate("a dog", steps=2, timeout=0.5))
    await living.until(Health.NOT_SERVING)
    assert await living.client.health("") is Health.NOT_SERVING and await living.client.health(SHELF) is Health.SERVING
    assert (await living.http("/readyz"), await living.http("/livez")) == (503, 200)  # it may yet go on
    sample = living.app.metrics.registry.get_sample_value
    assert (
        sample("loramux_service_up", {"service": "all"}) == 0 and (sample("loramux_runner_silent_seconds") or 0) > 0.6
    )
    with pytest.raises(DeadlineExceeded):
        await left
    del left
    go_on.set()
    assert (await drawing).images
    del drawing
    await living.until(Health.SERVING)
    assert await living.http("/readyz") == 200
    await before.is_again()


async def test_http_answers_while_the_base_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From before the first byte of it: the process is alive and not ready, and has metrics."""
    opened, answers, open_http = list[AdminServer](), dict[str, int](), composition.open_http

    def reading(settings: Settings) -> Base:
        for path in ("/livez", "/readyz", "/metrics"):
            answers[path] = status(opened[0].port, path)
        raise BadBase("base nowhere is gone")

    monkeypatch.setattr(composition, "open_http", lambda *given: opened.append(open_http(*given)) or opened[0])
    monkeypatch.setattr(composition, "_load", reading)
    with pytest.raises(BadBase, match="nowhere"):
        await composition.serve(Settings(store=tmp_path / "store", metrics_port=0), lambda _: None)
    assert answers == {"/livez": 200, "/readyz": 503, "/metrics": 200}
    with pytest.raises(urllib.error.URLError):
        status(opened[0].port, "/livez")  # it listens no more


def status(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


async def test_a_dead_runner_is_no_longer_alive(living: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(living.app.runner._scheduler, "plan", lambda: 1 / 0)
    await living.until(Health.NOT_SERVING)
    assert (await living.http("/readyz"), await living.http("/livez")) == (503, 503)


@pytest.mark.parametrize("living", [{"linger_seconds": 1.5}], indirect=True)
async def test_a_stop_is_seen_first_then_turns_away_and_lets_finish(living: Living) -> None:
    """Readiness ends at once, requests are taken for a while yet, then turned away; what runs ends well."""
    watching = asyncio.create_task(_watched(living))
    await asyncio.sleep(0.1)
    running = asyncio.create_task(living.client.generate("a red apple", steps=30))
    living.stop.set()
    await living.until(Health.NOT_SERVING)
    assert (await living.http("/readyz"), await living.http("/livez")) == (503, 200)
    assert (await living.client.generate("a dog", steps=1)).images, "still lingering"
    slow = asyncio.create_task(living.client.generate("a red apple", steps=150))
    refused = None
    async with asyncio.timeout(30):
        while refused is None:
            try:
                await living.client.generate("a dog", steps=1)
            except Unavailable as error:
                refused = error
    assert refused.reason == "DRAINING" and refused.retry_after == 1
    assert (await running).images and (await slow).images
    await living.ended
    assert await watching == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]


async def test_while_it_drains_nothing_new_is_taken_and_reading_goes_on(living: Living) -> None:
    drawing = living.client.stream("a red apple", steps=100)
    await anext(drawing)
    living.stop.set()
    await living.until(Health.NOT_SERVING)
    while not living.app._gate._draining:
        await asyncio.sleep(0.01)
    client = living.client
    file = small_adapter(1, "late")
    for work in (
        client.generate("a dog", steps=1, adapters={"nobody": 1.0}),
        anext(client.stream("a dog", steps=1)),
        asyncio.to_thread(_upload, living.target, file),  # an asyncio client may lose how a call ended that it wrote to
        client.preload_adapter("ink"),
        client.pin_adapter("ink"),
        client.unpin_adapter("ink"),
        client.update_adapter("ink", description="late"),
        client.delete_adapter("ink"),
        client.undelete_adapter("nobody"),
    ):
        with pytest.raises(Unavailable) as refused:
            await work
        assert (refused.value.reason, refused.value.retry_after) == ("DRAINING", 1)
    assert {adapter.name async for adapter in client.list_adapters()} >= {"ink"}
    assert (await client.get_adapter("ink")).name == "ink" and (await client.server_info()).base
    assert await client.health(PICTURES) is Health.NOT_SERVING
    assert isinstance([event async for event in drawing][-1], Done)
    await living.ended
    assert living.sample("loramux_rejected_total", reason="DRAINING") == 9
    assert living.sample("loramux_uploads_total", outcome="created") == 0


def _upload(target: str, content: bytes, pause: Pause | None = None) -> object:
    with Client(target) as client:
        return client.upload(content, "late", progress=pause, retries=0)


async def test_an_upload_that_outlasts_the_drain_is_told(living: Living) -> None:
    pause = Pause()
    pushing = asyncio.create_task(
        asyncio.to_thread(_upload, living.target, small_adapter(1, "late", pad=4 << 20), pause)
    )
    await pause.reached.wait()
    living.stop.set()
    with pytest.raises(Unavailable) as told:
        await pushing
    assert (told.value.reason, told.value.retry_after) == ("DRAINING", 1)
    pause.go_on.set()
    await living.ended
    named = {"grpc_service": SHELF, "grpc_method": "UploadAdapter", "grpc_code": "UNAVAILABLE"}
    assert living.sample("grpc_server_handled_total", **named) == 1
    assert living.sample("loramux_uploads_total", outcome="interrupted") == 1


async def test_a_stop_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What works beside has not come back from there: requests are turned away all the same."""
    go_on, reached, reclaim = threading.Event(), threading.Event(), Store.reclaim

    def hanging(store: Store) -> Reclaimed:
        reached.set()
        assert go_on.wait(60)
        return reclaim(store)

    monkeypatch.setattr(Store, "reclaim", hanging)
    living = Living(tmp_path / "store")
    await living.start()
    assert await asyncio.to_thread(reached.wait, 20)
    drawing = living.client.stream("a red apple", steps=100)
    await anext(drawing)
    living.stop.set()
    await living.until(Health.NOT_SERVING)
    refused = None
    while refused is None:
        try:
            await living.client.generate("a dog", steps=1)
        except Unavailable as error:
            refused = error
    assert refused.reason == "DRAINING"
    assert isinstance([event async for event in drawing][-1], Done)
    go_on.set()
    await living.shut()


CROWD = 40
"""More calls than asyncio has threads of its own for a machine of few cores."""


@pytest.mark.parametrize("living", [{"stall_seconds": 0.6}], indirect=True)
async def test_a_stall_and_a_stop_are_seen_while_every_request_waits_for_the_disk(
    living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_answers, steps, stepping = threading.Event(), threading.Event(), threading.Event()
    step, admit = living.app.engine.step, living.app.admission.admit

    def stalling(keys: Any) -> Any:
        stepping.set()
        assert steps.wait(60)
        return step(keys)

    def hanging(asked: Any) -> Any:
        assert disk_answers.wait(60)
        return admit(asked)

    monkeypatch.setattr(living.app.engine, "step", stalling)
    drawing = asyncio.create_task(living.client.generate("a red apple", steps=2))
    assert await asyncio.to_thread(stepping.wait, 20)
    monkeypatch.setattr(living.app.admission, "admit", hanging)
    waiting = [asyncio.create_task(living.client.generate("a dog", steps=1)) for _ in range(CROWD)]
    async with asyncio.timeout(30):
        while living.sample("grpc_server_started_total", **GENERATE) <= CROWD:
            await asyncio.sleep(0.05)
    await living.until(Health.NOT_SERVING)
    living.stop.set()
    async with asyncio.timeout(30):
        while not living.app.runner._draining:
            await asyncio.sleep(0.05)
    steps.set()
    assert (await drawing).images
    disk_answers.set()
    refused = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(each, Unavailable) for each in refused), refused
    await living.ended


async def test_a_disk_that_hangs_is_told_and_hides_nothing() -> None:
    told, answers, works = asyncio.Queue[tuple[str, bool]](), threading.Event(), {"runner": True}

    class Checks:
        async def set(self, name: str, status: int) -> None:
            told.put_nowait((name, status == health_pb2.HealthCheckResponse.SERVING))

    shelf = Service((SHELF,), lambda: answers.wait(60), "failing", on_disk=True)
    pictures = Service((PICTURES,), lambda: works["runner"], "stalls")
    watchdog, stop = Watchdog((shelf, pictures), Checks(), Metrics(), patience_s=0.01), asyncio.Event()
    watching = asyncio.create_task(watchdog.watch(stop))
    async with asyncio.timeout(30):
        assert {await told.get(), await told.get()} == {(PICTURES, True), (SHELF, False)}
        works["runner"] = False
        assert await told.get() == (PICTURES, False)
        answers.set()
        assert await told.get() == (SHELF, True)
    stop.set()
    await watching


async def _watched(living: Living) -> list[int]:
    """What a health watcher is told until its stream ends."""
    told: list[int] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{living.at.grpc_port}") as channel:
        try:
            async for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="")):
                told.append(answer.status)
        except grpc.aio.AioRpcError as error:
            assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    return told


async def test_health_is_told_of_each_service() -> None:
    checks, metrics = health.aio.HealthServicer(), Metrics()
    works = {"runner": True, "store": True}
    watchdog = Watchdog(
        (
            Service(("", PICTURES), lambda: works["runner"], "stalls"),
            Service((SHELF,), lambda: works["store"], "read-only"),
        ),
        checks,
        metrics,
    )

    async def told() -> list[bool]:
        await watchdog.look()
        answers = [await checks.Check(health_pb2.HealthCheckRequest(service=s), None) for s in ("", PICTURES, SHELF)]
        return [answer.status == health_pb2.HealthCheckResponse.SERVING for answer in answers]

    assert not watchdog.ready
    assert await told() == [True, True, True] and watchdog.ready
    works["store"] = False
    assert await told() == [True, True, False] and watchdog.ready
    works["runner"] = False
    assert await told() == [False, False, False] and not watchdog.ready
    works.update(runner=True, store=True)
    assert await told() == [True, True, True] and watchdog.ready
    assert metrics.registry.get_sample_value("loramux_service_up", {"service": SHELF}) == 1
