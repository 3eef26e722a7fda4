"""Backups are whole, also while the store is written to, and become stores again."""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import adapter_files as af
import pytest

from loramux_client import cli
from loramux_store import AdapterChange, Store, UploadSpec, back_up, restore
from loramux_store.disk import Disk
from loramux_store.errors import DataLoss, InvalidArgument

PATH = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def file(folder: Path, seed: int) -> Path:
    return af.write(folder / f"{seed}.safetensors", af.peft_tensors(af.factors(af.TOY_SD1, [PATH], seed=seed)))


@pytest.fixture
def filled(store: Store, tmp_path: Path) -> Store:
    """Two versions of x with an alias, and y, which is deleted."""
    for seed in (1, 2):
        store.publish(file(tmp_path, seed), UploadSpec(name="x", labels={"k": "v"}))
    store.update_adapter("x", AdapterChange(aliases={"prod": 1}))
    store.publish(file(tmp_path, 3), UploadSpec(name="y"))
    store.delete_adapter("y")
    return store


def told(store: Store) -> list[Any]:
    """Everything that a store tells, and the bytes it gives."""
    adapters = store.list_adapters(100, deleted=True).items
    live = [record.name for record in adapters if record.delete_time is None]
    versions = [
        store.resolve(f"{name}@{each.number}") for name in live for each in store.list_versions(name, 100).items
    ]
    return [
        adapters,
        versions,
        [b"".join(store.read_blob(version)) for version in versions],
        store.list_events(100).items,
        store.layouts(),
    ]


def test_a_restored_store_tells_all_that_the_old_one_told(filled: Store, tmp_path: Path) -> None:
    made = back_up(tmp_path / "store", tmp_path / "backup")
    assert (made.adapters, made.blobs, made.new_blobs) == (2, 3, 3) and made.new_bytes == filled.stats().bytes
    before = told(filled)
    filled.publish(file(tmp_path, 9), UploadSpec(name="x"))
    restore(tmp_path / "backup", tmp_path / "new")
    with Store.open(tmp_path / "new") as again:
        assert told(again) == before
        assert af.compiled_delta(again.compiled(again.resolve("x@prod")), af.TOY_SD1)[PATH].norm() > 0
        again.undelete_adapter("y")
        assert again.publish(file(tmp_path, 4), UploadSpec(name="x")).version.number == 3
    assert told(filled) != before, "the old store goes its own way"


def test_the_command_line_backs_up_and_restores(
    filled: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backup, new = str(tmp_path / "backup"), str(tmp_path / "new")
    assert cli.main(["adapters", "backup", backup, "--store", str(tmp_path / "store")]) == 0
    assert "backed up 2 adapters, 3 files (3 of them copied" in capsys.readouterr().out
    assert cli.main(["adapters", "restore", backup, "--store", new]) == 0
    with Store.open(tmp_path / "new") as again:
        assert told(again) == told(filled)
    assert cli.main(["adapters", "restore", backup, "--store", new]) == 1
    assert "move the old one away first" in capsys.readouterr().err


def test_a_later_backup_copies_what_is_new(filled: Store, tmp_path: Path) -> None:
    back_up(tmp_path / "store", tmp_path / "backup")
    new = file(tmp_path, 9)
    filled.publish(new, UploadSpec(name="z"))
    made = back_up(tmp_path / "store", tmp_path / "backup")
    assert (made.adapters, made.blobs, made.new_blobs, made.new_bytes) == (3, 4, 1, new.stat().st_size)
    restore(tmp_path / "backup", tmp_path / "new")
    with Store.open(tmp_path / "new") as again:
        assert told(again) == told(filled)


def test_a_backup_of_a_store_being_written_to_is_whole(store: Store, tmp_path: Path) -> None:
    """Every version and event in it is there with all before it, and every blob is right."""
    files = [file(tmp_path, seed) for seed in range(4)]
    stop, begun, count = threading.Event(), threading.Event(), 0

    def write() -> None:
        nonlocal count
        while not stop.is_set() and count < 500:
            store.publish(files[count % 4], UploadSpec(name="x", description=str(count)))
            store.update_adapter("x", AdapterChange(aliases={"last": count + 1}))
            count += 1
            begun.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert begun.wait(20)
    backups = list[tuple[int, Path, int]]()
    while len(backups) < 3 or (count == backups[0][0] and writer.is_alive()):  # a busy machine may let it wait
        folder = tmp_path / f"backup{len(backups)}"
        least = count
        back_up(tmp_path / "store", folder)
        backups.append((least, folder, count))
    stop.set()
    writer.join()
    assert backups[-1][2] > backups[0][0], "nothing was written meanwhile"
    for least, folder, most in backups:
        restore(folder, folder / "restored")
        with Store.open(folder / "restored") as again:
            adapter = again.get_adapter("x")
            latest = adapter.latest_version.number
            assert least <= latest <= most + 1
            assert adapter.description == str(latest - 1) and adapter.aliases["last"] in (latest, latest - 1)
            uploads = [event.version for event in again.list_events(1000).items if event.action == "upload"]
            assert uploads == list(range(latest, 0, -1))
            for version in again.list_versions("x", 4).items:
                assert b"".join(again.read_blob(version)) == files[(version.number - 1) % 4].read_bytes()


@pytest.mark.parametrize("schema", ["0003", "9999"])
def test_a_backup_by_another_release_leaves_the_schema_as_it_is(filled: Store, tmp_path: Path, schema: str) -> None:
    root, target = tmp_path / "store", tmp_path / "backup"
    stamp(root / "catalog.sqlite3", schema)
    assert back_up(root, target).blobs == 3
    assert [stamp(file) for file in (root / "catalog.sqlite3", target / "backup.sqlite3")] == [schema, schema]


def stamp(catalog: Path, schema: str | None = None) -> str:
    """The schema that a catalog says it has, made another one first where that is given."""
    with closing(sqlite3.connect(catalog)) as opened, opened:
        if schema is not None:
            opened.execute("update alembic_version set version_num = ?", (schema,))
        return str(opened.execute("select version_num from alembic_version").fetchone()[0])


def damage(root: Path, digest: str) -> None:
    blob = root / "blobs" / "sha256" / digest[:2] / digest
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)


def test_a_damaged_blob_makes_no_backup_and_no_store(filled: Store, tmp_path: Path) -> None:
    back_up(tmp_path / "store", tmp_path / "backup")
    earlier = (tmp_path / "backup" / "backup.sqlite3").read_bytes()
    filled.publish(file(tmp_path, 9), UploadSpec(name="x"))
    damage(tmp_path / "store", filled.resolve("x").blob_digest)
    damage(tmp_path / "backup", filled.resolve("x@1").blob_digest)
    with pytest.raises(DataLoss):
        back_up(tmp_path / "store", tmp_path / "backup")
    assert (tmp_path / "backup" / "backup.sqlite3").read_bytes() == earlier
    assert not list((tmp_path / "backup" / "uploads").iterdir())
    with pytest.raises(DataLoss):
        restore(tmp_path / "backup", tmp_path / "new")
    assert not (tmp_path / "new" / "catalog.sqlite3").exists()


def test_no_store_is_ever_written_over(filled: Store, tmp_path: Path) -> None:
    back_up(tmp_path / "store", tmp_path / "backup")
    before = told(filled)
    Store.open(tmp_path / "other").close()
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "catalog.sqlite3-wal").touch()
    for wrong in (
        lambda: back_up(tmp_path / "store", tmp_path / "store"),
        lambda: back_up(tmp_path / "store", tmp_path / "other"),
        lambda: back_up(tmp_path / "nothing", tmp_path / "b"),
        lambda: restore(tmp_path / "backup", tmp_path / "store"),
        lambda: restore(tmp_path / "backup", tmp_path / "log"),
        lambda: restore(tmp_path / "store", tmp_path / "new"),
        lambda: Store.open(tmp_path / "backup"),
    ):
        with pytest.raises(InvalidArgument):
            wrong()
    assert told(filled) == before


class Counting(Disk):
    """Stops at its n-th operation."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def write(self, handle: Any, data: Any) -> None:
        self._step()
        super().write(handle, data)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def sync(self, handle: Any) -> None:
        self._step()


def test_a_backup_that_is_cut_off_is_none_until_it_is_made_again(filled: Store, tmp_path: Path) -> None:
    at, done = 0, False
    while not done:
        folder = tmp_path / f"cut{at}"
        try:
            back_up(tmp_path / "store", folder, Counting(at))
            done = True
        except KeyboardInterrupt:
            assert not (folder / "backup.sqlite3").exists()
            with pytest.raises(InvalidArgument, match="backup"):
                restore(folder, tmp_path / f"new{at}")
            back_up(tmp_path / "store", folder)
        restore(folder, tmp_path / f"new{at}")
        with Store.open(tmp_path / f"new{at}") as again:
            assert told(again) == told(filled)
        at += 1
    assert at > 9
