"""Requests for pictures that are refused with a time to come back."""

from __future__ import annotations

import asyncio
import threading
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # pyright: ignore[reportMissingTypeStubs]

from loramux_client import AsyncClient, Client, cli, errors, patience
from loramux_client.patience import Turn

FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
METHODS = pytest.mark.parametrize("method", ["generate", "stream"])


def refuse(server: Any, told_s: float | None, times: int = -1, code: grpc.StatusCode = FULL) -> None:
    server.fail(code, "not now", error_details_pb2.ErrorInfo(reason="R"), times=times, told_s=told_s)


@METHODS
@pytest.mark.parametrize("code", [FULL, grpc.StatusCode.UNAVAILABLE])
async def test_a_refusal_that_says_when_is_waited_out(
    ask: Any, server: Any, method: str, code: grpc.StatusCode
) -> None:
    refuse(server, 0.02, times=3, code=code)
    assert await ask(method, "x", seed=1)
    first, *again = server.requests
    assert len(again) == 3 and all(request == first for request in again)


@METHODS
async def test_a_refusal_that_does_not_say_when_is_raised(ask: Any, server: Any, method: str) -> None:
    refuse(server, None, times=1)
    with pytest.raises(errors.ResourceExhausted):
        await ask(method, "x")
    assert len(server.requests) == 1


@METHODS
@pytest.mark.parametrize("retries", [0, 2])
async def test_retries_have_an_end(connect: Any, server: Any, method: str, retries: int) -> None:
    refuse(server, 0.01)
    async with connect(retries=retries) as ask:
        with pytest.raises(errors.ResourceExhausted, match="not now"):
            await ask(method, "x")
    assert len(server.requests) == retries + 1


@METHODS
async def test_no_wait_goes_beyond_the_timeout(ask: Any, server: Any, method: str) -> None:
    refuse(server, 20)
    with pytest.raises(errors.ResourceExhausted, match="not now"):
        await ask(method, "x", timeout=10)
    assert len(server.requests) == 1


@METHODS
async def test_tries_and_waits_share_one_timeout(
    ask: Any, server: Any, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Each try is given what is left, on a clock that goes on by 10 s whenever it is read: at the start, before every
    try, and before every wait."""
    clock = count(0, 10)
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    refuse(server, 0.01)
    with pytest.raises(errors.ResourceExhausted):
        await ask(method, "x", timeout=60)
    assert [round(seconds, -1) for seconds in server.seconds_left] == [50, 30, 10]


async def test_a_stream_that_has_told_something_does_not_begin_anew(ask: Any, server: Any) -> None:
    refuse(server, 0.01, times=0)
    server.steps_before_failing = 2
    with pytest.raises(errors.ResourceExhausted):
        await ask("stream", "x")
    assert len(server.requests) == 1


class Waiting(threading.Event):
    """In place of what a client waits on; tells when it does."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.begun.set()
        return super().wait(timeout)


class AsyncWaiting(asyncio.Event):
    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()

    async def wait(self) -> Any:
        self.begun.set()
        return await super().wait()


@METHODS
async def test_closing_the_sync_client_ends_the_wait(server: Any, method: str) -> None:
    refuse(server, 250)
    with Client(server.target) as client:
        client._closed = waiting = Waiting()
        asking = asyncio.create_task(asyncio.to_thread(lambda: list(getattr(client, method)("x"))))
        assert await asyncio.to_thread(waiting.begun.wait, 20)
        client.close()
        with pytest.raises(errors.Cancelled, match="closed"):
            await asyncio.wait_for(asking, 20)


@METHODS
@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_closing_and_cancelling_end_the_wait(server: Any, method: str, how: str) -> None:
    refuse(server, 250)

    async def draw(client: AsyncClient) -> None:
        if method == "generate":
            await client.generate("x")
        else:
            await anext(client.stream("x"))

    async with AsyncClient(server.target) as client:
        client._closed = waiting = AsyncWaiting()
        asking = asyncio.create_task(draw(client))
        await asyncio.wait_for(waiting.begun.wait(), 20)
        if how == "close":
            await client.close()
        else:
            asking.cancel()
        with pytest.raises(errors.Cancelled if how == "close" else asyncio.CancelledError):
            await asyncio.wait_for(asking, 20)
    assert len(server.requests) == 1


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_BREAKS", (0.01, 0.01, 0.01))


@pytest.mark.usefixtures("at_once")
async def test_a_generation_that_breaks_is_asked_for_again_under_its_id(ask: Any, server: Any) -> None:
    """Also with an image, which is larger than what gRPC keeps to send it again itself."""
    server.fail(grpc.StatusCode.UNAVAILABLE, "the connection broke", times=3)
    await ask("generate", "x", image=bytes(1 << 20))
    assert len(server.requests) == 4 and len({request.request_id for request in server.requests}) == 1
    assert {len(request.image) for request in server.requests} == {1 << 20}


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("method", "given", "retries", "times"),
    [
        ("generate", {}, 0, 1),
        ("generate", {}, 8, 4),
        ("generate", {"request_id": "mine"}, 8, 4),
        ("generate", {"request_id": ""}, 8, 1),
        ("stream", {}, 8, 1),
    ],
)
async def test_how_often_what_breaks_is_asked_for(
    connect: Any, server: Any, method: str, given: dict[str, str], retries: int, times: int
) -> None:
    """Only under an id; where nobody is, it is given up after three more tries."""
    server.fail(grpc.StatusCode.UNAVAILABLE, "the connection broke")
    async with connect(retries=retries) as ask:
        with pytest.raises(errors.Unavailable):
            await ask(method, "x", **given)
    assert len(server.requests) == times


def test_waits_are_spread_but_never_shorter_than_told() -> None:
    told = errors.ResourceExhausted("full", retry_after=4.0)
    pauses = [Turn(1, None).pause(told) for _ in range(200)]
    assert 4.0 <= min(pauses) < 4.2 and 4.8 < max(pauses) <= 5.0
    with pytest.raises(errors.ResourceExhausted):
        Turn(1, 3.9).pause(told)


async def test_the_command_waits_as_often_as_it_is_told(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def generate(*options: str) -> int:
        arguments = ["generate", "x", "-o", str(tmp_path / "a.png"), *options, "--server", server.target]
        return await asyncio.to_thread(cli.main, arguments)

    refuse(server, 0.01, times=2)
    assert await generate() == 0 and len(server.requests) == 3
    refuse(server, 0.01, times=2)
    assert await generate("--retries", "1") == 1 and len(server.requests) == 5
    assert capsys.readouterr().err.splitlines()[-1] == "loramux: not now (try again in 0.01 s)"
