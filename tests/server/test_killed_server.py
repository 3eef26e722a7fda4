"""SIGKILL and restart under load, again and again: what was acknowledged is there, whole, and draws."""

import asyncio
import hashlib
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from aftermath import Before, warm
from crowd import alike, drawn
from processes import Serving, start
from small_adapters import KINDS, small_adapter

from loramux_client import AsyncClient, patience
from loramux_client.channel import channel_options
from loramux_client.errors import NotFound, Unavailable
from loramux_client.shelf import AdapterVersion
from loramux_store import Store

T = TypeVar("T")
UPLOADERS = 2
PAUSE = 0.05  # seconds of a client between one thing and the next


@dataclass
class Acknowledged:
    """What clients were told, as far as they were: versions and what they sent, aliases (and the next one, which may be
    there as well), names that are gone, pictures."""

    versions: dict[str, tuple[AdapterVersion, int, bytes]] = field(default_factory=dict)
    aliases: dict[str, list[int]] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    pictures: int = 0

    def copy(self) -> "Acknowledged":
        aliases = {name: numbers[:] for name, numbers in self.aliases.items()}
        return Acknowledged(dict(self.versions), aliases, self.deleted[:], self.pictures)


class Load:
    """Clients that upload, point aliases, delete and draw, until they are told to stop."""

    def __init__(self, target: str, expected: list[np.ndarray], dice: random.Random) -> None:
        self._target, self._expected, self._dice = target, expected, dice
        self._stop = asyncio.Event()
        self.told = Acknowledged()

    def start(self, prefix: str) -> None:
        """prefix: of names."""
        uploads = (self._upload(f"{prefix}-uploaded-{number}") for number in range(UPLOADERS))
        work = (*uploads, self._delete(f"{prefix}-deleted"), self._draw())
        self._tasks = [asyncio.create_task(each) for each in work]

    async def end(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _upload(self, name: str) -> None:
        count = 0
        async with AsyncClient(self._target, timeout=60) as client:
            while not self._stop.is_set():
                kind, count = count % KINDS, count + 1
                file = small_adapter(kind, f"{name} {count}", pad=600_000 if count % 3 == 0 else 0)
                version = (await client.upload(file, name, retries=100)).version
                assert version is not None and version.number == count, "each made one version, in their order"
                self.told.versions[f"{name}@{count}"] = version, kind, file
                self.told.aliases.setdefault(name, [0]).append(count)  # asked for, and may be there
                await repeated(lambda n=count: client.update_adapter(name, aliases={"prod": n}))
                self.told.aliases[name] = [count]
                await asyncio.sleep(PAUSE)

    async def _delete(self, prefix: str) -> None:
        count = 0
        async with AsyncClient(self._target, timeout=60) as client:
            while not self._stop.is_set():
                name, count = f"{prefix}-{count}", count + 1
                await client.upload(small_adapter(0, name), name, retries=100)
                with suppress(NotFound):  # only the answer was lost
                    await repeated(lambda n=name: client.delete_adapter(n))
                self.told.deleted.append(name)
                await asyncio.sleep(PAUSE)

    async def _draw(self) -> None:
        async with AsyncClient(self._target, timeout=60) as client:
            while not self._stop.is_set():
                if not self.told.versions:
                    await asyncio.sleep(0.02)
                    continue
                ref = self._dice.choice(list(self.told.versions))
                found = await repeated(lambda ref=ref: drawn(client, ref))
                assert alike(found, self._expected[self.told.versions[ref][1]]), ref
                self.told.pictures += 1
                await asyncio.sleep(PAUSE)


async def repeated(call: Callable[[], Awaitable[T]]) -> T:
    """Until a server is there."""
    async with asyncio.timeout(120):
        while True:
            try:
                return await call()
            except Unavailable:
                await asyncio.sleep(0.05)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that try again soon."""
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(patience, "_LONGEST_PAUSE", 0.2)
    soon = [(f"grpc.{which}_reconnect_backoff_ms", 100) for which in ("initial", "min", "max")]
    for module in ("aio", "client"):
        monkeypatch.setattr(
            f"loramux_client.{module}.channel_options", lambda *asked: [*channel_options(*asked), *soon]
        )


@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
async def test_sigkill_under_load_loses_nothing_acknowledged(tmp_path: Path, hasty: None, kills: int) -> None:
    dice = random.Random(kills)
    serving = await start(tmp_path / "store")
    expected = await pictures_of_each_kind(serving.client)
    load = Load(serving.target, expected, dice)
    load.start("first")
    for _ in range(kills):
        begun = len(load.told.versions), len(load.told.deleted), load.told.pictures
        async with asyncio.timeout(60):
            while any(now <= then for now, then in zip(counts(load.told), begun, strict=True)):
                await asyncio.sleep(0.05)
        await asyncio.sleep(dice.uniform(0, 0.3))
        serving.send(signal.SIGKILL)
        told = load.told.copy()
        assert await serving.ended() == -signal.SIGKILL
        serving = await start(tmp_path / "store", port=serving.port)
        sample = dice.sample(sorted(told.versions), k=min(4, len(told.versions)))
        await check(serving, told, sample, expected, tmp_path)
    await load.end()
    await check(serving, load.told, sorted(load.told.versions), expected, tmp_path)
    await nothing_is_left(serving, expected, dice)
    assert await serving.stop() == 0
    with Store.open(tmp_path / "store") as store:
        assert store.fsck(full=True) == ()


def counts(told: Acknowledged) -> tuple[int, int, int]:
    return len(told.versions), len(told.deleted), told.pictures


async def pictures_of_each_kind(client: AsyncClient) -> list[np.ndarray]:
    """By a server that nobody has killed; each adapter acts, and like no other."""
    for kind in range(KINDS):
        await client.upload(small_adapter(kind, "before"), f"kind-{kind}")
    plain, *found = [await drawn(client, name) for name in ("", *(f"kind-{kind}" for kind in range(KINDS)))]
    assert not any(alike(one, other) for one in found for other in (plain, *found) if one is not other)
    return found


async def check(
    serving: Serving, told: Acknowledged, sample: list[str], expected: list[np.ndarray], folder: Path
) -> None:
    """sample: versions to download and draw with, too."""
    client, listed = serving.client, dict[str, tuple[str, str]]()
    for name in {ref.partition("@")[0] for ref in told.versions}:
        async for version in client.list_versions(name):
            listed[f"{name}@{version.number}"] = version.digest, version.blob_digest
    for ref, (version, _, file) in told.versions.items():
        assert listed[ref] == (version.digest, hashlib.sha256(file).hexdigest()), ref
    for ref in sample:
        _, kind, file = told.versions[ref]
        await client.download(ref, folder / "downloaded")
        assert (folder / "downloaded").read_bytes() == file, ref
        assert alike(await drawn(client, ref), expected[kind]), ref
    names = {adapter.name async for adapter in client.list_adapters()}
    assert names.isdisjoint(told.deleted) and "kind-0" in names
    for name, numbers in told.aliases.items():
        now = (await client.get_adapter(name)).aliases.get("prod", 0)
        assert now >= numbers[0], f"{name}@prod is {now}, {numbers} were asked for"


async def nothing_is_left(serving: Serving, expected: list[np.ndarray], dice: random.Random) -> None:
    """Of the same load on a server that lives on."""
    await warm(serving.client, "kind-0", "kind-1")
    before, again = Before(serving), Load(serving.target, expected, dice)
    again.start("second")
    async with asyncio.timeout(60):
        while min(counts(again.told)) < 3:
            await asyncio.sleep(0.05)
    await again.end()
    await before.is_again()
