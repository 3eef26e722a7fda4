"""Clients and networks that misbehave. After each fault nothing of it is left, and the server draws as before."""

import asyncio
import gc
import os
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from bad_wire import Wire
from living import Living

from loramux_client import AsyncClient
from loramux_client.errors import DeadlineExceeded, LoraMuxClientError, Unavailable

LONG = {"steps": 150, "adapters": {"ink": 0.7, "glossy": 0.5}}
GROWTH = 4 << 20
"""Bytes of resident memory that a fault may leave."""


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def living(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Living]:
    """One for all, as after each fault nothing of it is left."""
    made = Living(tmp_path_factory.mktemp("wire") / "store", threads=2)
    await made.start()
    for _ in range(3):  # whatever is made once is made
        asked = [made.client.generate("a red apple", steps=2, adapters={"ink": 0.7, "glossy": 0.5}) for _ in range(5)]
        await asyncio.gather(*asked, *(made.client.generate("a dog", steps=2) for _ in range(5)))
    yield made
    await made.shut()


class Before:
    """What a server holds while nobody asks for anything."""

    def __init__(self, living: Living) -> None:
        self._living, self._files, self._tasks = living, _files(), len(asyncio.all_tasks())
        self._memory = _resident()

    async def is_again(self) -> None:
        living = self._living
        async with asyncio.timeout(30):
            while self._left():
                await asyncio.sleep(0.05)
        assert (await living.client.generate("a red apple", steps=1)).images
        gc.collect()
        grown = _resident() - self._memory
        assert grown <= GROWTH, f"{grown} bytes"

    def _left(self) -> dict[str, Any]:
        runner, engine = self._living.app.runner, self._living.app.engine
        left = {
            "jobs": len(runner._jobs),
            "images": len(runner._scheduler._requests),
            "users": sum(resident.users for resident in engine.adapters.device.residents.values()),
            "files": max(0, _files() - self._files),
            "tasks": max(0, len(asyncio.all_tasks()) - self._tasks),
        }
        return {what: count for what, count in left.items() if count}


def _files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _resident() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


async def vanish(target: str, times: int) -> None:
    """Clients that ask, hear the first event and are gone, in a process of their own."""
    script = Path(__file__).parent / "vanishing_client.py"
    process = await asyncio.create_subprocess_exec(sys.executable, str(script), target, str(times))
    assert await process.wait() == 0


@pytest.mark.parametrize("times", [25, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
async def test_clients_that_vanish(living: Living, times: int) -> None:
    await vanish(living.target, 25)
    await asyncio.sleep(0.5)
    before = Before(living)
    await vanish(living.target, times)
    await before.is_again()


async def test_a_slow_reader_holds_up_nobody(living: Living) -> None:
    """Its events pile up at the server, within what the wire takes; others are drawn meanwhile."""
    before, wire = Before(living), Wire(piece=64, pause=0.02)
    async with wire.to(living.at.grpc_port) as target, AsyncClient(target, timeout=60) as slow:
        stream = slow.stream("a red apple", steps=100)
        await anext(stream)
        assert (await living.client.generate("a dog", steps=3)).images
        assert living.app.runner._jobs, "the slow one is still there"
        await stream.aclose()
    await before.is_again()


async def test_pieces_of_one_byte(living: Living) -> None:
    before, wire = Before(living), Wire(piece=1)
    async with wire.to(living.at.grpc_port) as target, AsyncClient(target, timeout=60) as client:
        mine = await client.generate("a red apple", steps=2, seed=5)
        assert wire.passed > 1000
    straight = await living.client.generate("a red apple", steps=2, seed=5)
    assert mine.images[0].data == straight.images[0].data
    await before.is_again()


async def test_a_connection_that_is_reset(living: Living) -> None:
    before, wire = Before(living), Wire()
    async with wire.to(living.at.grpc_port) as target, AsyncClient(target, timeout=60) as client:
        drawing = asyncio.create_task(client.generate("a red apple", **LONG))
        await _running(living)
        wire.reset()
        with pytest.raises(Unavailable):
            await drawing
    await before.is_again()


async def test_a_connection_that_is_half_open(living: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client hears nothing any more and gives up at its deadline; the server, which was never told, finishes, and
    keeps nothing. Its steps wait for the connection to die: few fit the deadline on any machine."""
    before, wire, dead, step = Before(living), Wire(), threading.Event(), living.app.engine.step

    def waiting(keys: Any) -> Any:
        assert dead.wait(30)
        return step(keys)

    monkeypatch.setattr(living.app.engine, "step", waiting)
    async with wire.to(living.at.grpc_port) as target, AsyncClient(target, timeout=6) as client:
        drawing = asyncio.create_task(client.generate("a red apple", steps=2))
        await _running(living)
        wire.dead = True
        dead.set()
        with pytest.raises(DeadlineExceeded) as caught:
            await drawing
    assert caught.value.reason != "DEADLINE_TOO_SHORT"
    del caught
    await before.is_again()


@pytest.mark.parametrize("phase", ["queued", "drawing", "uploading"])
async def test_a_deadline_that_passes(living: Living, phase: str) -> None:
    before = Before(living)
    async with AsyncClient(living.target) as client:
        with pytest.raises(LoraMuxClientError) as caught:
            match phase:
                case "queued":
                    others = [asyncio.create_task(client.generate("a dog", steps=40)) for _ in range(4)]
                    await _running(living)
                    living.app.runner._scheduler.plan, plan = lambda: None, living.app.runner._scheduler.plan
                    try:
                        await client.generate("a red apple", steps=3, timeout=0.5)
                    finally:
                        living.app.runner._scheduler.plan = plan
                        await asyncio.gather(*others)
                case "drawing":
                    await client.generate("a red apple", **LONG, timeout=0.4)
                case _:
                    await client.upload(bytes(8 << 20), "slow", timeout=1e-3, retries=0)
    assert isinstance(caught.value, DeadlineExceeded), caught.value
    del caught  # it holds the call, and that its connection
    await before.is_again()


TOO_LARGE = """
import sys, grpc
from loramux.v1 import generation_pb2, generation_service_pb2_grpc
channel = grpc.insecure_channel(sys.argv[1], [("grpc.max_send_message_length", -1)])
request = generation_pb2.GenerateRequest(prompt="x", image=bytes(80 << 20))
call = generation_service_pb2_grpc.GenerationServiceStub(channel).Generate.future(request)
sys.exit(0 if call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED else f"{call.code()}: {call.details()}")
"""


async def test_a_message_that_is_too_large(living: Living) -> None:
    """From a process of its own: so large a message takes the memory of who sends it."""
    before = Before(living)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", TOO_LARGE, living.target)
    assert await process.wait() == 0
    await before.is_again()


async def _running(living: Living) -> None:
    async with asyncio.timeout(30):
        while not living.app.runner._scheduler.running:
            await asyncio.sleep(0.01)
