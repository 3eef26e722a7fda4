"""fsck and gc: what is found, what is mended, what is never taken."""

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import adapter_files as af
import pytest

from loramux_store import Store, UploadSpec, VersionRecord
from loramux_store.errors import DataLoss, InvalidArgument, NotFound

LINEAR = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
DAY = 24 * 3600.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def put(store: Store, folder: Path, name: str, seed: int = 0) -> VersionRecord:
    tensors = af.kohya_tensors(af.factors(af.TOY_SD1, [LINEAR], seed=seed))
    file = af.write(folder / "in.safetensors", tensors)
    version = store.publish(file, UploadSpec(name, layout="toy_sd1")).version
    assert version is not None
    return version


@pytest.fixture
def ink(store: Store, tmp_path: Path) -> Iterator[VersionRecord]:
    yield put(store, tmp_path, "ink", 1)


def blob(root: Path, version: VersionRecord) -> Path:
    return root / "blobs" / "sha256" / version.blob_digest[:2] / version.blob_digest


def compiled(root: Path, version: VersionRecord) -> Path:
    return root / "compiled" / version.layout_digest / f"{version.digest}.safetensors"


def spoil(path: Path, at: int = -40) -> None:
    """One bit of another byte, the size as it was."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def codes(store: Store, *, full: bool = False, repair: bool = False) -> list[tuple[str, str, bool, bool]]:
    return [(f.code, f.subject, f.lost, f.mended) for f in store.fsck(full=full, repair=repair)]


def test_nothing_is_found_in_a_whole_store(store: Store, ink: VersionRecord, tmp_path: Path) -> None:
    put(store, tmp_path, "moss", 2)
    store.delete_adapter("moss")
    with store.begin_upload(UploadSpec("wip"), "an-upload") as upload:
        upload.write(b"begun")
        for full in (False, True):
            for repair in (False, True):
                assert codes(store, full=full, repair=repair) == []
        assert len(list((tmp_path / "store" / "uploads").glob("*.part"))) == 1
    assert store.resolve("ink") == ink


@pytest.mark.parametrize("how", ["gone", "cut off", "changed"])
def test_a_compiled_file_is_made_again(store: Store, ink: VersionRecord, root: Path, how: str) -> None:
    path = compiled(root, ink)
    whole = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut off":
        path.chmod(0o644)
        os.truncate(path, len(whole) - 4)
    else:
        spoil(path)
    code = "compiled_missing" if how == "gone" else "compiled_damaged"
    quick = [] if how == "changed" else [(code, "ink@1", False, False)]
    assert codes(store) == quick
    assert codes(store, full=True) == [(code, "ink@1", False, False)]
    assert codes(store, full=True, repair=True) == [(code, "ink@1", False, True)]
    assert path.read_bytes() == whole
    assert codes(store, full=True) == []


@pytest.mark.parametrize("how", ["cut off", "changed"])
def test_a_damaged_blob_is_set_aside_and_never_deleted(
    store: Store, ink: VersionRecord, root: Path, tmp_path: Path, how: str
) -> None:
    path = blob(root, ink)
    if how == "cut off":
        path.chmod(0o644)
        os.truncate(path, 99)
    else:
        spoil(path)
    damaged = path.read_bytes()
    code = "blob_size" if how == "cut off" else "blob_damaged"
    assert codes(store) == ([(code, "ink@1", True, False)] if how == "cut off" else [])
    assert codes(store, full=True) == [(code, "ink@1", True, False)]
    assert path.exists()
    assert codes(store, full=True, repair=True) == [(code, "ink@1", True, False)]
    kept = root / "quarantine" / ink.blob_digest
    assert kept.read_bytes() == damaged and not path.exists()

    (found,) = store.fsck()
    assert (found.code, found.lost) == ("blob_missing", True) and "quarantine/" in found.detail
    assert store.compiled(ink) == compiled(root, ink)  # it keeps serving
    store.gc(0)
    assert kept.exists()
    with pytest.raises(DataLoss):
        b"".join(store.read_blob(ink))
    put(store, tmp_path, "ink", 1)  # the same bytes again
    assert codes(store, full=True) == []


def test_what_has_lost_its_blob_and_its_compiled_file_is_lost(store: Store, ink: VersionRecord, root: Path) -> None:
    blob(root, ink).unlink()
    compiled(root, ink).unlink()
    wanted = [("blob_missing", "ink@1", True, False), ("compiled_missing", "ink@1", True, False)]
    assert codes(store, repair=True) == wanted
    assert store.resolve("ink") == ink


def test_of_a_deleted_adapter_only_the_upload_counts(store: Store, ink: VersionRecord, root: Path) -> None:
    """Its compiled file is made again when it comes back."""
    store.delete_adapter("ink")
    compiled(root, ink).unlink()
    assert codes(store, full=True, repair=True) == []
    spoil(blob(root, ink))
    assert codes(store, full=True) == [("blob_damaged", "ink@1", True, False)]


def test_versions_that_share_a_blob_are_each_told(store: Store, ink: VersionRecord, root: Path, tmp_path: Path) -> None:
    put(store, tmp_path, "also", 1)
    spoil(blob(root, ink))
    assert [c[:2] for c in codes(store, full=True, repair=True)] == [
        ("blob_damaged", "also@1"),
        ("blob_damaged", "ink@1"),
    ]


def test_what_crashes_leave_is_told_and_removed(store: Store, ink: VersionRecord, root: Path) -> None:
    stray = root / "blobs" / "sha256" / "00" / ("00" * 32)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"stray")
    lost = compiled(root, ink).with_name("f" * 64 + ".safetensors")
    shutil.copy(compiled(root, ink), lost)
    part = root / "uploads" / ("a" * 32 + ".part")
    part.write_bytes(b"old")
    os.utime(part, (time.time() - 2 * DAY,) * 2)
    subjects = [path.relative_to(root).as_posix() for path in (part, stray, lost)]
    wanted = list(zip(("leftover", "orphan", "orphan"), subjects, strict=True))
    assert [c[:2] for c in codes(store)] == wanted
    assert all(path.exists() for path in (part, stray, lost))
    assert [c[:2] for c in codes(store, repair=True)] == wanted
    assert not any(path.exists() for path in (part, stray, lost))
    assert blob(root, ink).exists() and codes(store, full=True) == []


def test_a_row_without_its_layout_is_told(store: Store, ink: VersionRecord, root: Path) -> None:
    assert codes(store) == [] and store.catalog_faults() == []
    with closing(sqlite3.connect(root / "catalog.sqlite3")) as catalog, catalog:
        catalog.execute("DELETE FROM layouts WHERE digest = ?", (ink.layout_digest,))
    assert codes(store)[0][:3] == ("catalog_damaged", "catalog.sqlite3", True)
    assert len(store.catalog_faults()) == 1


# gc


def test_deleted_adapters_go_after_their_grace(store: Store, ink: VersionRecord, root: Path, tmp_path: Path) -> None:
    moss = put(store, tmp_path, "moss", 2)
    shared = put(store, tmp_path, "shared", 1)  # ink's bytes
    for name in ("moss", "ink"):
        store.delete_adapter(name)
    assert store.gc(DAY) == store.gc(DAY, dry_run=True)
    assert store.gc(DAY).files == () and blob(root, moss).exists()

    told = store.gc(0, dry_run=True)
    assert told.adapters == ("ink", "moss")
    paths = [blob(root, moss), compiled(root, moss)]
    assert sorted(told.files) == sorted((p.relative_to(root).as_posix(), p.stat().st_size) for p in paths)
    assert told.bytes == sum(p.stat().st_size for p in paths)
    assert all(path.exists() for path in paths)
    assert store.gc(0, dry_run=True) == told  # a dry run changes nothing

    assert store.gc(0, who="ann") == told
    *purged, freed = store.list_events(3).items[::-1]
    assert [(e.who, e.action, e.adapter) for e in purged] == [("ann", "purge", "ink"), ("ann", "purge", "moss")]
    assert purged[1].detail == f"versions: 1, bytes: {moss.size_bytes}"
    assert (freed.who, freed.action, freed.detail) == ("ann", "gc", f"adapters: 2, files: 2, bytes: {told.bytes}")
    assert not any(path.exists() for path in paths)
    assert store.resolve("shared") == shared and store.compiled(shared) == compiled(root, ink)
    assert blob(root, ink).exists()
    assert store.gc(0).files == ()
    assert store.list_events(1).items == (freed,)  # a run that frees nothing is not told
    assert codes(store, full=True) == []
    with pytest.raises(NotFound):
        store.resolve("ink")
    assert put(store, tmp_path, "ink", 1).number == 1  # a name forgotten begins anew


def test_gc_takes_nothing_of_a_live_adapter_or_a_running_upload(
    store: Store, ink: VersionRecord, root: Path, tmp_path: Path
) -> None:
    second = put(store, tmp_path, "ink", 5)
    data = (tmp_path / "in.safetensors").read_bytes()
    with store.begin_upload(UploadSpec("new", layout="toy_sd1"), "an-upload") as upload:
        upload.write(data[:50])
        assert store.gc(0).files == ()
        upload.write(data[50:])
        version = upload.commit().version
    assert version is not None and store.compiled(version).exists()
    for kept in (ink, second):
        assert blob(root, kept).exists() and compiled(root, kept).exists()


def test_a_grace_is_a_time(store: Store) -> None:
    for grace in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidArgument, match="grace"):
            store.gc(grace)


def test_tools_beside_uploads_of_another_process_harm_nothing(store: Store, tmp_path: Path, root: Path) -> None:
    """Two stores on one folder, as a server and a tool: uploads, deletions and compiled files made again, all the
    while fsck repairs and gc takes what is deleted."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def tidy() -> None:
        with Store.open(root) as other:
            while not stop.is_set():
                other.gc(0)
                failed.extend(AssertionError(f) for f in other.fsck(full=True, repair=True) if f.lost)

    def run() -> None:
        try:
            tidy()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for at in range(12):
            version = put(store, tmp_path, f"ink-{at}", at % 4)  # some bytes come again while their last version goes
            if at % 3 == 2:
                store.delete_adapter(f"ink-{at - 1}")
            assert store.compiled(version).exists()
    finally:
        stop.set()
        thread.join()
    assert failed == []
    assert codes(store, full=True, repair=True) == []
    for record in store.list_adapters(100).items:
        assert blob(root, record.latest_version).exists() and compiled(root, record.latest_version).exists()
