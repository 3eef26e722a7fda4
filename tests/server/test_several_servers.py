"""Several servers behind one target: calls are spread over them, and what a server has of its own stays with it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from living import Living
from small_adapters import small_adapter

from loramux_client import AsyncClient, Client
from loramux_client.pictures import ImageReady, Queued
from loramux_client.upload_source import CHUNK_BYTES
from loramux_server import app

pytestmark = pytest.mark.asyncio(loop_scope="module")

INFO, GET_UPLOAD = "/loramux.v1.GenerationService/GetServerInfo", "/loramux.v1.AdapterService/GetUpload"

ENDED = "loramux_uploads_total"


@dataclass(frozen=True)
class Heard:
    """A call that came to a server: which, and over which connection."""

    path: str
    peer: str


def listen(server: Living) -> list[Heard]:
    """Gets all that comes from now on."""
    heard, gate = list[Heard](), server.app._gate
    enter = gate.enter

    def entering(path: str, metadata: Any) -> Any:
        entry = enter(path, metadata)

        def caller(peer: str, certified: str | None = None) -> Any:
            heard.append(Heard(path, peer))
            return entry.caller(peer, certified)

        return SimpleNamespace(caller=caller)

    gate.enter = entering  # type: ignore[method-assign]
    return heard


@dataclass
class Several:
    """Two servers, and what comes to each."""

    servers: list[Living]
    heard: list[list[Heard]]

    @property
    def target(self) -> str:
        return "ipv4:" + ",".join(each.target for each in self.servers)

    def counts(self, path: str) -> list[int]:
        return [sum(call.path == path for call in calls) for calls in self.heard]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Several]:
    folder = tmp_path_factory.mktemp("several")
    servers = [Living(folder / name) for name in ("one", "other")]
    for each in servers:
        await each.start()
    yield Several(servers, [listen(each) for each in servers])
    for each in servers:
        await each.shut()


async def until(happened: Callable[[], object], ask: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not happened():
            await ask()
            await asyncio.sleep(0.01)


async def found(several: Several, client: Client | AsyncClient) -> None:
    """Once both servers have answered the client."""
    before = several.counts(INFO)
    await until(
        lambda: all(now > then for now, then in zip(several.counts(INFO), before, strict=True)), lambda: ask(client)
    )


async def ask(client: Client | AsyncClient) -> None:
    await (client.server_info() if isinstance(client, AsyncClient) else asyncio.to_thread(client.server_info))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_calls_go_to_all_servers_in_turn(two: Several, kind: type[Client | AsyncClient]) -> None:
    client = kind(two.target)
    await found(two, client)
    before = two.counts(INFO)
    for _ in range(40):
        await ask(client)
    assert [now - then for now, then in zip(two.counts(INFO), before, strict=True)] == [20, 20]
    await (client.close() if isinstance(client, AsyncClient) else asyncio.to_thread(client.close))


class Interrupted(Exception):
    """In the middle of an upload."""


async def test_an_upload_and_what_is_asked_of_it_stay_with_one_server(two: Several) -> None:
    """It is broken off, and gone on with where its beginning is."""
    file = small_adapter(1, note="stays", pad=6 * CHUNK_BYTES)

    def breaks(sent: int, _: int) -> None:
        if sent > 3 * CHUNK_BYTES:
            raise Interrupted

    def uploaded() -> list[float]:
        return sorted(each.sample("loramux_upload_bytes_total") for each in two.servers)

    async def a_moment() -> None:
        pass

    with Client(two.target) as client:
        await found(two, client)
        with pytest.raises(Interrupted):
            await asyncio.to_thread(client.upload, file, "stays", progress=breaks)
        await until(lambda: any(each.sample(ENDED, outcome="refused") for each in two.servers), a_moment)
        assert (await asyncio.to_thread(client.upload, file, "stays")).created
        assert uploaded() == [0, len(file)], "nothing came twice"
        for _ in range(6):
            assert (await asyncio.to_thread(client.get_adapter, "stays")).name == "stays"
    assert sorted(two.counts(GET_UPLOAD)) == [0, 2]


async def test_both_ways_to_balance_share_a_connection(two: Several) -> None:
    """Of one server a client has one, whatever it asks for."""
    (server, *_), (heard, *_) = two.servers, two.heard
    begun = len(heard)
    async with AsyncClient(server.target) as client:
        await client.server_info()
        assert [adapter.name async for adapter in client.list_adapters()]
    assert len({call.peer for call in heard[begun:]}) == 1


async def test_connections_end_of_age_and_no_call_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that takes longer than a connection may live is drawn to its end, while other calls come over newer
    ones. Half an hour is 300 ms here, and what else is said of the age in proportion."""
    monkeypatch.setattr(
        app, "_OPTIONS", [(name, v // 6000 if "max_connection_age" in name else v) for name, v in app._OPTIONS]
    )
    server = Living(tmp_path / "aged")
    await server.start()
    heard, step, going = listen(server), server.app.engine.step, asyncio.Event()
    loop = asyncio.get_running_loop()

    def waiting(keys: Any) -> Any:
        asyncio.run_coroutine_threadsafe(going.wait(), loop).result(30)
        return step(keys)

    monkeypatch.setattr(server.app.engine, "step", waiting)

    def connections() -> int:
        return len({call.peer for call in heard})

    async with AsyncClient(server.target) as client, aclosing(client.stream("a dog", steps=2)) as story:
        assert isinstance(await anext(story), Queued)
        await until(lambda: connections() >= 4, client.server_info)
        going.set()
        assert any([isinstance(event, ImageReady) async for event in story])
    await server.shut()
