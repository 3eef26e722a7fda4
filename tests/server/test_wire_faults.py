"""Clients and networks that misbehave. After each fault nothing of it is left, and the server draws as before."""

import asyncio
import io
import random
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from aftermath import Before, warm
from bad_wire import Wire
from living import Living
from PIL import Image
from random_messages import random_message
from small_adapters import small_adapter

from loramux.v1 import adapter_service_pb2, generation_service_pb2
from loramux_client import AsyncClient
from loramux_client.errors import DeadlineExceeded, Unavailable
from loramux_client.pictures import Step
from loramux_server import app
from loramux_store.upload import Upload

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECONDS = 1.5
"""A deadline that is far enough for what is asked, so that nobody refuses it for being too short."""
LONG: dict[str, Any] = {"steps": 150, "adapters": {"ink": 0.7, "glossy": 0.5}}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def living(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Living]:
    """One for all: each test leaves it as it was."""
    made = Living(tmp_path_factory.mktemp("wire") / "store", threads=2)
    await made.start()
    await warm(made.client, "ink", "glossy", "zib")
    yield made
    await made.shut()


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
    async with wire.to(living.at.grpc_port) as target, AsyncClient(target, timeout=60, retries=0) as client:
        drawing = asyncio.create_task(client.generate("a red apple", **LONG))
        await _running(living)
        wire.reset()
        with pytest.raises(Unavailable):
            await drawing
    await before.is_again()


async def test_a_connection_that_is_reset_while_it_is_drawn(living: Living) -> None:
    """The client asks again by itself. Whether it finds the first drawing still there or has it drawn anew, it gets the
    picture of its seed."""
    before, wire, asked = Before(living), Wire(), {**LONG, "steps": 60, "seed": 5}
    drawn = living.sample("loramux_images_total")
    async with wire.to(living.at.grpc_port) as target, AsyncClient(target, timeout=60) as client:
        drawing = asyncio.create_task(client.generate("a red apple", **asked))
        await _running(living)
        wire.reset()
        mine = await drawing
    assert living.sample("loramux_images_total") == drawn + 1
    straight = await living.client.generate("a red apple", **asked)
    assert mine.images[0].data == straight.images[0].data
    await before.is_again()


async def test_a_connection_that_is_reset_before_the_answer_came(living: Living) -> None:
    """It is drawn, and the answer is lost: the client asks again, and nothing is drawn again."""
    before, wire, ended = Before(living), Wire(), "loramux_request_seconds_count"

    def counts() -> list[float]:
        repeated = living.sample("loramux_repeated_requests_total", how="kept")
        return [living.sample("loramux_admitted_total", priority="normal"), living.sample(ended), repeated]

    at_first = counts()
    async with wire.to(living.at.grpc_port) as target, AsyncClient(target, timeout=60) as client:
        drawing = asyncio.create_task(client.generate("a red apple", steps=30))
        await _running(living)
        wire.dead = True
        async with asyncio.timeout(30):
            while living.sample(ended) == at_first[1]:
                await asyncio.sleep(0.01)
        wire.reset()
        wire.dead = False
        assert (await drawing).images
    assert [after - earlier for after, earlier in zip(counts(), at_first, strict=True)] == [1, 1, 1]
    await before.is_again()


SOON = {"grpc.keepalive_time_ms": 1000, "grpc.keepalive_timeout_ms": 2000, "grpc.http2.ping_timeout_ms": 2000}


@pytest_asyncio.fixture(loop_scope="module")
async def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Living]:
    """Asks soon whether clients are there."""
    monkeypatch.setattr(app, "_OPTIONS", [(name, SOON.get(name, value)) for name, value in app._OPTIONS])
    made = Living(tmp_path / "store", threads=2)
    await made.start()
    await warm(made.client, "ink")
    yield made
    await made.shut()


def connections(port: int) -> int:
    """Of clients, at the end of who listens on the port."""
    listed = (Path("/proc/net", name).read_text().splitlines()[1:] for name in ("tcp", "tcp6"))
    rows = [row.split() for rows in listed for row in rows]
    return sum(int(row[1].partition(":")[2], 16) == port and row[3] == "01" for row in rows)


async def test_a_connection_that_is_half_open(impatient: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody hears anything any more: one whose picture is drawn, one who watches, one who asks nothing. The first
    gives up at its deadline. The server, which was never told, finishes, finds out, and keeps nothing, while the wire
    is dead still. Its steps wait for the connection to die: few fit the deadline on any machine."""
    before, wire, dead, step = Before(impatient), Wire(), threading.Event(), impatient.app.engine.step
    own = [("grpc.use_local_subchannel_pool", 1)]
    here = connections(impatient.at.grpc_port)

    def waiting(keys: Any) -> Any:
        assert dead.wait(30)
        return step(keys)

    monkeypatch.setattr(impatient.app.engine, "step", waiting)
    async with wire.to(impatient.at.grpc_port) as target, AsyncClient(target, timeout=6) as client:
        drawing = asyncio.create_task(client.generate("a red apple", steps=2))
        await _running(impatient)
        async with grpc.aio.insecure_channel(target, own) as watching, grpc.aio.insecure_channel(target, own) as idle:
            watch = watching.unary_stream("/grpc.health.v1.Health/Watch")(b"")
            assert await watch.read()
            await idle.channel_ready()
            assert connections(impatient.at.grpc_port) == here + 3
            wire.dead = True
            dead.set()
            with pytest.raises(DeadlineExceeded) as caught:
                await drawing
            assert caught.value.reason != "DEADLINE_TOO_SHORT"
            del caught
            async with asyncio.timeout(20):
                while connections(impatient.at.grpc_port) > here:
                    await asyncio.sleep(0.05)
            assert wire.dead and not watch.done()
    await before.is_again()


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
PING, GOAWAY = 6, 7


async def test_clients_may_ask_whether_the_server_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice a minute, for as long as they like; a second is a millisecond here."""
    name = "grpc.http2.min_ping_interval_without_data_ms"
    monkeypatch.setattr(app, "_OPTIONS", [(n, v // 1000 if n == name else v) for n, v in app._OPTIONS])
    living = Living(tmp_path / "store")
    await living.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", living.at.grpc_port)
    writer.write(PREFACE)

    async def answered() -> None:
        while True:
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3], "big"))
            assert head[3] != GOAWAY, "cut off"
            if head[3] == PING and head[4] & 1:
                return

    try:
        async with asyncio.timeout(20):
            for _ in range(8):
                writer.write(bytes([0, 0, 8, PING, 0, 0, 0, 0, 0]) + bytes(8))
                await answered()
                await asyncio.sleep(0.06)
    finally:
        writer.close()
        await living.shut()


async def test_a_deadline_that_passes_in_the_queue(living: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Before(living)
    with monkeypatch.context() as patch:
        patch.setattr(living.app.runner._scheduler, "plan", lambda: None)
        with pytest.raises(DeadlineExceeded):
            await living.client.generate("a red apple", steps=3, timeout=SECONDS)
    await before.is_again()


async def test_a_deadline_that_passes_while_it_is_drawn(living: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes longer than those before, from which the server had to foresee it."""
    before, step, steps = Before(living), living.app.engine.step, 0

    def slowly(keys: Any) -> Any:
        time.sleep(0.4)
        return step(keys)

    with monkeypatch.context() as patch:
        patch.setattr(living.app.engine, "step", slowly)
        stream = living.client.stream("a red apple", steps=8, timeout=SECONDS)
        with pytest.raises(DeadlineExceeded):
            async for event in stream:
                steps += isinstance(event, Step)
    assert 0 < steps < 8
    del stream
    await before.is_again()


class Gate:
    """In place of a function: waits before it, until it may go on."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, *args: Any, **named: Any) -> Any:
        self.reached.set()
        assert self.opened.wait(60)
        return self._function(*args, **named)


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    return file.getvalue()


def phases(app: Any, folder: Path) -> dict[str, tuple[Any, str, Callable[[AsyncClient], Any]]]:
    """What is waited for in each: the function's owner, its name, and a call that comes to it."""
    file = small_adapter(1, note="of a deadline")

    def draw(**asked: Any) -> Callable[[AsyncClient], Any]:
        return lambda client: client.generate("a red apple", steps=2, timeout=SECONDS, **asked)

    def push(client: AsyncClient) -> Any:
        return client.upload(file, "slow", timeout=SECONDS, retries=0)

    def pull(client: AsyncClient) -> Any:
        return client.download("ink", folder / "ink", timeout=SECONDS)

    return {
        "admitting": (app.admission, "admit", draw()),
        "loading an adapter": (app.engine.adapters.host, "read", draw(adapters={"zib": 1.0})),
        "encoding an image": (app.engine, "encode", draw(image=picture(), strength=0.8)),
        "encoding text": (app.engine.conditioner, "given", draw()),
        "decoding": (app.engine, "deliver", draw()),
        "uploading": (Upload, "write", push),
        "checking an upload": (app.store, "_finish", push),
        "downloading": (app.store, "read_blob", pull),
    }


PHASES = (
    "admitting", "loading an adapter", "encoding an image", "encoding text", "decoding", "uploading",
    "checking an upload", "downloading",
)  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
async def test_a_deadline_that_passes(
    living: Living, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, phase: str
) -> None:
    """Whoever asked hears it while the server is still at it; once it goes on, it finds that nobody waits."""
    owner, name, ask = phases(living.app, tmp_path)[phase]
    living.app.engine.adapters.drop([living.app.store.resolve("zib").digest])  # so that it has to be loaded
    before, gate = Before(living), Gate(getattr(owner, name))
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, lambda *args, **named: gate(*args, **named))
        try:
            with pytest.raises(DeadlineExceeded):
                await ask(living.client)
            assert gate.reached.is_set(), "the deadline passed elsewhere"
        finally:
            gate.opened.set()
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


METHODS = [
    method
    for file in (generation_service_pb2, adapter_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def malformed(dice: random.Random) -> Iterator[tuple[Any, bytes]]:
    """For every method, bytes that are no message of its type: a message cut off, and one with a field of another
    wire type before it."""
    for method in METHODS:
        whole = random_message(method.input_type, dice).SerializeToString()
        first = method.input_type.fields[0].number if method.input_type.fields else 1
        yield method, bytes([first << 3 | 2, 127]) + whole[:100]  # announces more bytes than come
        yield method, bytes([first << 3 | 7]) + whole


async def test_messages_that_are_malformed(living: Living) -> None:
    """`test_any_message.py` sends random ones; here none is a message."""
    async with grpc.aio.insecure_channel(living.target) as channel:
        assert await _refused(channel, random.Random(0)) == 2 * len(METHODS)
        before = Before(living)
        for seed in range(1, 6):
            await _refused(channel, random.Random(seed))
        await before.is_again()


async def _refused(channel: grpc.aio.Channel, dice: random.Random) -> int:
    count = 0
    for method, data in malformed(dice):
        path = f"/{method.containing_service.full_name}/{method.name}"
        kinds = {(False, False): "unary_unary", (False, True): "unary_stream", (True, False): "stream_unary"}
        stub = getattr(channel, kinds[method.client_streaming, method.server_streaming])(path)
        call = stub(iter([data]) if method.client_streaming else data)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT, (path, data, await call.details())
        count += 1
    return count


async def _running(living: Living) -> None:
    async with asyncio.timeout(30):
        while not living.app.runner._scheduler.running:
            await asyncio.sleep(0.01)
