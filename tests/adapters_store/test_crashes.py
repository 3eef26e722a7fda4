"""A machine that stops at any point of an upload leaves the version whole, or leftovers that are reclaimed."""

import contextlib
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import adapter_files as af
import killed_uploader
import pytest
from failing_disk import POINTS, FailingDisk, PowerCut

from loramux_store import Store, Unfinished, UploadSpec, VersionRecord
from loramux_store.errors import UploadNotFound

PATH = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
CHUNK = 300


def file(folder: Path, seed: int) -> Path:
    return af.write(folder / f"{seed}.safetensors", af.peft_tensors(af.factors(af.TOY_SD1, [PATH], seed=seed)))


def prepared(folder: Path, first: Path) -> None:
    """A store that has a version already."""
    with Store.open(folder) as store:
        store.register_layout(af.TOY_SD1)
        store.publish(first, UploadSpec(name="x"))


def check_whole(store: Store, folder: Path, version: VersionRecord) -> None:
    """Blob and compiled file are there and are what the row says."""
    blob = folder / "blobs" / "sha256" / version.blob_digest[:2] / version.blob_digest
    assert hashlib.sha256(blob.read_bytes()).hexdigest() == version.blob_digest
    assert af.compiled_delta(store.compiled(version), af.TOY_SD1)[PATH].norm() > 0


def check_restart(folder: Path, second: Path) -> int:
    """Opens the store as after a restart; every version is whole and nothing else is there. How many there are."""
    with Store.open(folder, upload_idle_s=-1) as store:
        store.reclaim()
        assert list((folder / "uploads").iterdir()) == []
        versions = [store.resolve(f"x@{listed.number}") for listed in store.list_versions("x", 10).items]
        for version in versions:
            check_whole(store, folder, version)
        listed = {version.blob_digest for version in versions} | {version.digest for version in versions}
        files = [path for part in ("blobs", "compiled") for path in (folder / part).rglob("*") if path.is_file()]
        assert {path.name.removesuffix(".safetensors") for path in files} == listed
        assert store.publish(second, UploadSpec(name="x")).version.number == 2, "the store takes it afterwards"
        return len(versions)


def test_a_power_cut_at_every_operation(tmp_path: Path) -> None:
    first, second = file(tmp_path, 1), file(tmp_path, 2)
    outcomes: list[tuple[bool, int]] = []
    operations: list[str] = []
    prepared(tmp_path / "prepared", first)
    while not operations:
        folder = shutil.copytree(tmp_path / "prepared", tmp_path / str(len(outcomes)))
        disk = FailingDisk(10_000)
        store, acknowledged = Store.open(folder, disk=disk), False
        disk.left, disk.done = len(outcomes), []
        with disk.with_commits(), contextlib.suppress(PowerCut):
            acknowledged = store.publish(second, UploadSpec(name="x")).created
        if disk.left:
            operations = disk.done
        store.close()
        outcomes.append((acknowledged, check_restart(folder, second)))
    assert set(POINTS) | {"commit"} == set(operations)
    assert outcomes[0] == (False, 1) and outcomes[-1] == (True, 2)
    assert [found for _, found in outcomes] == sorted(found for _, found in outcomes)
    assert all(found == 2 for acknowledged, found in outcomes if acknowledged), "nothing acknowledged is lost"


def go_on(store: Store, content: bytes) -> VersionRecord:
    """The upload of a client that asks how far it came."""
    with store.begin_upload(UploadSpec(name="x", size_bytes=len(content)), "an-upload") as upload:
        for at in range(upload.received, len(content), CHUNK):
            upload.write(content[at : at + CHUNK])
        version = upload.commit().version
        assert version is not None
        return version


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.long)])
def test_an_upload_goes_on_after_a_power_cut_at_every_operation(tmp_path: Path, stride: int) -> None:
    first, content = file(tmp_path, 1), file(tmp_path, 2).read_bytes()
    prepared(tmp_path / "prepared", first)
    kept: list[int] = []
    while True:
        folder = shutil.copytree(tmp_path / "prepared", tmp_path / str(len(kept)))
        disk = FailingDisk(10_000)
        store = Store.open(folder, disk=disk)
        disk.left, disk.done = stride * len(kept), []
        with disk.with_commits(), contextlib.suppress(PowerCut):
            go_on(store, content)
        store.close()
        with Store.open(folder) as store:
            try:
                found = store.find_upload("an-upload")
            except UploadNotFound:
                kept.append(0)
            else:
                kept.append(found.received if isinstance(found, Unfinished) else found.version.size_bytes)
            assert go_on(store, content).blob_digest == hashlib.sha256(content).hexdigest()
        check_restart(folder, tmp_path / "2.safetensors")
        if disk.left:
            break
    assert kept[0] == 0 and any(0 < count < len(content) for count in kept) and kept[-1] == len(content)


def test_what_a_running_upload_needs_is_not_reclaimed(store: Store, tmp_path: Path) -> None:
    with store.begin_upload(UploadSpec(name="x")) as upload:
        upload.write(file(tmp_path, 1).read_bytes())
        assert store.reclaim().files == 0
        version = upload.commit().version
    assert store.reclaim().files == 0
    check_whole(store, tmp_path / "store", version)


def test_a_version_being_published_is_not_reclaimed(store: Store, tmp_path: Path) -> None:
    """Its files have their names before their row is there; `reclaim` waits for the row."""
    import threading

    found: list[int] = []
    reclaim = threading.Thread(target=lambda: found.append(store.reclaim().files))
    place = store._place

    def slowly(*args: Any) -> None:
        place(*args)
        reclaim.start()
        reclaim.join(0.2)
        assert reclaim.is_alive(), "it has seen the files and waits"

    store._place = slowly  # type: ignore[method-assign]
    version = store.publish(file(tmp_path, 1), UploadSpec(name="x")).version
    reclaim.join()
    assert found == [0]
    check_whole(store, tmp_path / "store", version)


@pytest.mark.parametrize("rounds", [6, pytest.param(400, marks=pytest.mark.long)])
def test_uploads_killed_again_and_again(tmp_path: Path, rounds: int) -> None:
    folder, acknowledged = tmp_path / "store", tmp_path / "acknowledged"
    with Store.open(folder) as store:
        store.register_layout(af.TOY_SD1)
    arguments = [folder, file(tmp_path, 1), acknowledged, rounds]
    subprocess.run([sys.executable, killed_uploader.__file__, *map(str, arguments)], check=True)
    with Store.open(folder, upload_idle_s=-1) as store:
        store.reclaim()
        assert list((folder / "uploads").iterdir()) == []
        numbers = [int(line) for line in acknowledged.read_text().split()]
        token, versions = "", list[VersionRecord]()
        while page := store.list_versions("x", 1000, token):
            versions += [store.resolve(f"x@{listed.number}") for listed in page.items]
            token = page.next_page_token
            if not token:
                break
        versions.reverse()
        assert len(numbers) >= 1
        assert numbers == list(range(1, len(numbers) + 1)), "each made one version, in their order"
        assert len(versions) - len(numbers) in (0, 1), "one may have been killed before it was noted"
        for version in versions:
            check_whole(store, folder, version)
            expected = killed_uploader.content(tmp_path / "1.safetensors", version.number - 1)
            assert version.blob_digest == hashlib.sha256(expected).hexdigest()
        files = [path for part in ("blobs", "compiled") for path in (folder / part).rglob("*") if path.is_file()]
        assert len(files) == 2 * len(versions)
