"""A disk that is full, broken or read-only: the right error, no damage, and all is well afterwards."""

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapter_files as af
import numpy as np
import pytest
import sqlalchemy as sa
import xxhash

from loramux_store import Store, UploadSpec
from loramux_store.compiled_arrays import CompiledFile
from loramux_store.compiled_file import FORMAT
from loramux_store.errors import DataLoss, DiskFailed, NoSpace, ReadOnly, StoreError
from loramux_store.seal import SEAL_BYTES
from loramux_store.sqlite_errors import told

PATH = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
CALLS = ("open", "write", "fsync", "chmod", "replace", "unlink")


def file(folder: Path, seed: int) -> Path:
    return af.write(folder / f"{seed}.safetensors", af.peft_tensors(af.factors(af.TOY_SD1, [PATH], seed=seed)))


class Failures:
    """The system calls of the store, of which the n-th fails."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int, at: int) -> None:
        self.calls: list[str] = []
        for name in CALLS:
            patch.setattr(f"loramux_store.disk.os.{name}", self._failing(name, getattr(os, name), number, at))

    def _failing(self, name: str, call: Callable[..., Any], number: int, at: int) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) - 1 == at:
                raise OSError(number, os.strerror(number))
            return call(*args, **kwargs)

        return wrapped


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, NoSpace), (errno.EIO, DiskFailed), (errno.EROFS, ReadOnly)]
)
def test_any_call_that_fails_is_told_and_does_no_damage(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[StoreError]
) -> None:
    first, second = file(tmp_path, 1), file(tmp_path, 2)
    store.publish(first, UploadSpec(name="x"))
    seen: set[str] = set()
    for at in range(1000):
        with monkeypatch.context() as patch:
            failures = Failures(patch, number, at)
            try:
                store.publish(second, UploadSpec(name=f"y{at}"))
            except StoreError as error:
                assert type(error) is expected
                done = False
            else:
                done = True
        if len(failures.calls) <= at:
            break
        seen.add(failures.calls[at])
        assert done == (failures.calls[at] == "unlink"), "only a leftover that stays is no failure"
        names = [record.name for record in store.list_adapters(1000).items]
        assert (f"y{at}" in names) == done, "refused means not there"
        assert af.compiled_delta(store.compiled(store.resolve("x")), af.TOY_SD1)[PATH].norm() > 0
        assert store.publish(second, UploadSpec(name=f"y{at}")).created != done, "and then it works"
    assert seen == set(CALLS)
    store.reclaim()
    blobs = [path for path in (tmp_path / "store" / "blobs").rglob("*") if path.is_file()]
    assert {path.name for path in blobs} == {store.resolve("x").blob_digest, store.resolve("y0").blob_digest}


@pytest.mark.parametrize(
    ("pragma", "expected", "leftovers"), [("query_only = ON", ReadOnly, 0), ("max_page_count = 1", NoSpace, 2)]
)
def test_a_catalog_that_cannot_be_written(
    store: Store, tmp_path: Path, pragma: str, expected: type[StoreError], leftovers: int
) -> None:
    version = store.publish(file(tmp_path, 1), UploadSpec(name="x")).version
    big = UploadSpec(name="y", description="y" * 8000, labels={str(n): "v" * 256 for n in range(64)})

    def set_up(connection: Any, _record: Any, _proxy: Any) -> None:
        connection.execute(f"PRAGMA {pragma}")

    sa.event.listen(store._catalog._engine, "checkout", set_up)
    with pytest.raises(expected):
        store.publish(file(tmp_path, 2), big)
    assert store.resolve("x") == version and store.compiled(version).exists(), "reading goes on"
    sa.event.remove(store._catalog._engine, "checkout", set_up)
    store._catalog._engine.dispose()
    assert store.reclaim().files == leftovers, "blob and compiled file without their row"
    assert store.publish(file(tmp_path, 2), big).created


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_what_cannot_be_written_is_compiled_in_memory(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A compiled file that is gone, on a disk that takes no other: whoever draws gets the same bytes all the same."""
    version = store.publish(file(tmp_path, 1), UploadSpec(name="x")).version
    assert version is not None
    written, path = store.read_compiled(version), store.compiled(version)
    path.unlink()
    with monkeypatch.context() as patch:
        Failures(patch, number, at=0)
        check_equal(store.read_compiled(version), written)
    assert not path.exists() and not store.fsck()[0].lost
    check_equal(store.read_compiled(version), written)
    assert store.fsck(full=True) == ()


def check_equal(found: CompiledFile, wanted: CompiledFile) -> None:
    assert (found.modules, found.embeddings) == (wanted.modules, wanted.embeddings)
    assert found.tensors.keys() == wanted.tensors.keys() and any(tensor.any() for tensor in wanted.tensors.values())
    assert all(np.array_equal(found.tensors[name], tensor) for name, tensor in wanted.tensors.items())


def test_a_store_tells_whether_it_can_be_written(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.writable()
    with monkeypatch.context() as patch:
        patch.setattr("loramux_store.disk.os.write", refuse)
        assert store.writable(), "nobody has tried"
        with pytest.raises(DiskFailed):
            store.publish(file(tmp_path, 1), UploadSpec(name="x"))
        assert not store.writable() and not store.writable()
    assert store.writable()
    with monkeypatch.context() as patch:
        patch.setattr("loramux_store.store.free_bytes", lambda _: 1 << 12)
        assert not store.writable()
    sa.event.listen(store._catalog._engine, "checkout", only_read)
    with pytest.raises(ReadOnly):
        store.publish(file(tmp_path, 1), UploadSpec(name="x"))
    assert not store.writable()
    sa.event.remove(store._catalog._engine, "checkout", only_read)
    store._catalog._engine.dispose()
    assert store.writable() and list((tmp_path / "store" / "uploads").iterdir()) == []


def refuse(*_: Any) -> int:
    raise OSError(errno.EIO, "no")


def only_read(connection: Any, _record: Any, _proxy: Any) -> None:
    connection.execute("PRAGMA query_only = ON")


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_BUSY])
def test_other_errors_of_the_catalogs_disk(tmp_path: Path, code: int) -> None:
    original = sqlite3.OperationalError("no")
    original.sqlite_errorcode = code
    with pytest.raises(DiskFailed, match="catalog"), told(tmp_path):
        raise sa.exc.OperationalError("select", {}, original)


def test_faults_of_ours_are_not_blamed_on_the_disk(tmp_path: Path) -> None:
    with pytest.raises(sa.exc.IntegrityError), told(tmp_path):
        raise sa.exc.IntegrityError("insert", {}, sqlite3.IntegrityError("no"))


def damaged(name: str, whole: bytes) -> bytes | None:
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    return {"truncated": whole[:-10], "flipped": bytes(flipped), "longer": whole + b"x", "gone": None}[name]


@pytest.mark.parametrize("how", ["truncated", "flipped", "longer", "gone"])
def test_a_damaged_blob_is_data_loss_until_it_comes_again(store: Store, tmp_path: Path, how: str) -> None:
    source = file(tmp_path, 1)
    version, other = (store.publish(path, UploadSpec(name=path.stem)).version for path in (source, file(tmp_path, 2)))
    blob = tmp_path / "store" / "blobs" / "sha256" / version.blob_digest[:2] / version.blob_digest
    bytes_now = damaged(how, source.read_bytes())
    blob.unlink()
    if bytes_now is not None:
        blob.write_bytes(bytes_now)
    assert store.compiled(version).exists(), "the compiled file is whole"
    if how != "longer":  # what comes after the file is not sent
        sent: list[bytes] = []
        with pytest.raises(DataLoss, match=version.blob_digest):
            sent.extend(store.read_blob(version))
        assert sum(map(len, sent)) < version.size_bytes, "never a whole file that is wrong"
    store.compiled(version).unlink()
    with pytest.raises(DataLoss, match=version.blob_digest):
        store.compiled(version)
    assert store.compiled(other).exists()
    assert not store.publish(source, UploadSpec(name="1")).created
    assert af.compiled_delta(store.compiled(version), af.TOY_SD1)[PATH].norm() > 0


def older(whole: bytes) -> bytes:
    """The compiled file as an older release would have written it: another form, and a seal that fits."""
    body = whole[:-SEAL_BYTES].replace(f'"format":"{FORMAT}"'.encode(), f'"format":"{"0" * len(FORMAT)}"'.encode())
    assert body != whole[:-SEAL_BYTES]
    return body + xxhash.xxh3_128(body).digest()


def flipped(at: float) -> Callable[[bytes], bytes]:
    def flip(whole: bytes) -> bytes:
        place = int(at * (len(whole) - 1))
        return whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]

    return flip


@pytest.mark.parametrize(
    "damage",
    [older, *map(flipped, (0.0, 0.2, 0.5, 0.9, 1.0)), lambda whole: whole[:-40], lambda whole: whole + b"x"],
)
def test_a_compiled_file_that_is_old_or_damaged_is_made_again(
    store: Store, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    version = store.publish(file(tmp_path, 1), UploadSpec(name="x")).version
    path = store.compiled(version)
    whole, inode = path.read_bytes(), path.stat().st_ino
    assert store.compiled(version).stat().st_ino == inode, "and a whole one stays"
    path.chmod(0o644)
    path.write_bytes(damage(whole))
    assert store.compiled(version).read_bytes() == whole
    assert path.stat().st_ino != inode


def test_the_folder_of_compiled_files_may_be_thrown_away(store: Store, tmp_path: Path) -> None:
    import shutil

    version = store.publish(file(tmp_path, 1), UploadSpec(name="x")).version
    shutil.rmtree(tmp_path / "store" / "compiled")
    assert af.compiled_delta(store.compiled(version), af.TOY_SD1)[PATH].norm() > 0
