"""The disk refuses to take anything while a server draws: uploads hear why, pictures go on, and it is over when it is
over."""

import asyncio
import errno
import os
import shutil
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa
from aftermath import Before, warm
from crowd import Heard, alike, crowd, drawn
from living import PICTURES, SHELF, Living
from pausing import Pause
from processes import NoOwnDisk, start
from small_adapters import small_adapter

from loramux_client import AsyncClient
from loramux_client.errors import FailedPrecondition, LoraMuxClientError, ResourceExhausted, Unavailable
from loramux_client.server_info import Health
from loramux_client.upload_source import CHUNK_BYTES
from loramux_store import Store
from loramux_store.blobs import Shelf

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG = 4 * CHUNK_BYTES
POINTS = ("upload", "compile", "commit")
SAID: dict[int, tuple[type[LoraMuxClientError], str]] = {
    errno.ENOSPC: (ResourceExhausted, "NO_SPACE"),
    errno.EROFS: (FailedPrecondition, "STORE_READ_ONLY"),
    errno.EIO: (Unavailable, "DISK_FAILED"),
}
SQLITE = {
    errno.ENOSPC: sqlite3.SQLITE_FULL,
    errno.EROFS: sqlite3.SQLITE_READONLY,
    errno.EIO: sqlite3.SQLITE_IOERR_WRITE,
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def living(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Living]:
    made = Living(tmp_path_factory.mktemp("full") / "store", threads=2)
    await made.start()
    for kind in (1, 2):
        await made.client.upload(small_adapter(kind, "before"), f"kind-{kind}")
    await warm(made.client, "kind-1", "kind-2")
    for point in POINTS * 2:  # whatever is made once is made
        await scenario(made, point, errno.ENOSPC)
    yield made
    await made.shut()


@contextmanager
def sick(app: Any, point: str, number: int) -> Generator[None]:
    """Of the store's disk every write to an upload, to any other new file, or every commit fails."""
    patch = pytest.MonkeyPatch()
    write, held = os.write, app.store._uploads._held

    def failing(handle: int, data: Any) -> int:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.parent.name == "uploads" and (path in held) == (point == "upload"):
            raise OSError(number, os.strerror(number))
        return write(handle, data)

    def refuse(connection: sa.Connection) -> None:
        if not connection.get_execution_options().get("write"):
            return
        error = sqlite3.OperationalError("no")
        error.sqlite_errorcode = SQLITE[number]
        raise error

    engine = app.store._catalog._engine
    if point == "commit":
        sa.event.listen(engine, "commit", refuse)
    else:
        patch.setattr("loramux_store.disk.os.write", failing)
    try:
        yield
    finally:
        patch.undo()
        if point == "commit":
            sa.event.remove(engine, "commit", refuse)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.1)


SHORT = list(zip(POINTS, SAID, strict=True))
OTHERS = [pair for pair in product(POINTS, SAID) if pair not in SHORT]


@pytest.mark.parametrize(
    ("point", "number"), [*SHORT, *(pytest.param(*pair, marks=pytest.mark.long) for pair in OTHERS)]
)
async def test_a_disk_that_refuses(living: Living, point: str, number: int) -> None:
    before = Before(living)
    await scenario(living, point, number)
    await before.is_again()


async def scenario(living: Living, point: str, number: int) -> None:
    """An upload hears why it ends, pictures go on, and once the disk takes it the same upload becomes a version."""
    client, pause, (kind, reason) = living.client, Pause(), SAID[number]
    file, name = small_adapter(3, uuid.uuid4().hex, pad=LONG), f"{point}-{number}"
    expected = await drawn(client, "kind-1")
    async with crowd(living.target, ["kind-1"], count=1) as heard:
        pushing = asyncio.create_task(client.upload(file, name, progress=pause, retries=0))
        await pause.reached.wait()
        with sick(living.app, point, number):
            pause.go_on.set()
            with pytest.raises(kind) as caught:
                await pushing
            assert caught.value.reason == reason
            del caught, pushing
            if point != "upload":  # a write to an upload tells nothing of what comes after it
                await until(lambda: health_is(client, Health.NOT_SERVING))
            await drawn_anew(living, heard)
        await until(lambda: health_is(client, Health.SERVING))
        assert (await client.upload(file, name)).created, "the same one, once there is room"
    assert not heard.refusals and all(alike(picture, expected) for _, picture in heard.pictures)
    await drawn(client, name)


async def health_is(client: AsyncClient, health: Health) -> bool:
    """Of the shelf; pictures are served whatever it does."""
    assert await client.health(PICTURES) is Health.SERVING
    return await client.health(SHELF) is health


async def drawn_anew(living: Living, heard: Heard) -> None:
    """Pictures, also of an adapter whose compiled file is gone, so that it must be made again."""
    store, count = living.app.store, len(heard.pictures)
    shelf: Shelf = store._shelf
    version = store.resolve("kind-2")
    expected = await drawn(living.client, "kind-2")
    shelf.compiled_file(version.layout_digest, version.digest).unlink(missing_ok=True)
    living.app.engine.adapters.drop([version.digest])
    assert alike(await drawn(living.client, "kind-2"), expected)
    async with asyncio.timeout(30):
        while len(heard.pictures) == count:
            await asyncio.sleep(0.02)


async def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A file system of 48 MiB over the store, seen by the server alone, and a file that takes all that is free."""
    try:
        serving = await start(tmp_path / "store", own_disk=48 << 20)
    except NoOwnDisk:
        pytest.skip("this machine lets ordinary processes mount nothing")
    disk = Path(f"/proc/{serving.pid}/root") / (tmp_path / "store").relative_to("/")
    client, file = serving.client, small_adapter(2, "late", pad=LONG)
    await client.upload(small_adapter(1, "early"), "early")
    await client.upload(small_adapter(3, "cold"), "cold")
    expected = await drawn(client, "early")
    await warm(client, "early")
    before = Before(serving)
    async with crowd(serving.target, ["early", ""], count=2) as heard:
        pause = Pause()
        pushing = asyncio.create_task(client.upload(file, "late", progress=pause, retries=0))
        await pause.reached.wait()
        fill(disk / "ballast")
        pause.go_on.set()
        await refused(pushing)
        fill(disk / "more")  # what came of the upload is gone
        await refused(client.upload(small_adapter(2, "new"), "new"))
        await until(lambda: health_is(client, Health.NOT_SERVING))
        await described(client)
        await drawn(client, "cold")
        async with asyncio.timeout(30):
            while len(heard.pictures) < 8:
                await asyncio.sleep(0.02)
        for name in ("ballast", "more"):
            (disk / name).unlink()
        await until(lambda: health_is(client, Health.SERVING))
        assert (await client.upload(file, "late")).created
    assert not heard.refusals
    assert all(alike(picture, expected) for ref, picture in heard.pictures if ref)
    assert not alike(await drawn(client, "late"), expected)
    await before.is_again()
    shutil.copytree(disk, tmp_path / "copy")  # which goes with the server
    with Store.open(tmp_path / "copy") as store:
        assert store.fsck(full=True) == ()
    assert await serving.stop() == 0


async def refused(upload: Any) -> None:
    with pytest.raises(ResourceExhausted) as caught:
        await upload
    assert caught.value.reason == "NO_SPACE"


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC


async def described(client: AsyncClient) -> None:
    """Changes of the catalog are refused, unless its log has room that it took before."""
    for count in range(20):
        try:
            await client.update_adapter("early", description=str(count) * 4000)
        except ResourceExhausted as error:
            assert error.reason == "NO_SPACE"
            return
