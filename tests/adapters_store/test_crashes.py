"""A machine that stops at any point of an upload leaves the version whole, or leftovers that are reclaimed."""

import contextlib
import hashlib
import shutil
from pathlib import Path
from typing import Any

import adapter_files as af
import sqlalchemy as sa
from sqlalchemy import event

from loramux_store import Store, UploadSpec, VersionRecord
from loramux_store.disk import Disk

PATH = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
POINTS = ("create", "write", "sync", "publish", "make_folder", "rename", "sync_folder", "remove")


class PowerCut(BaseException):
    """The machine stops; nothing after it runs."""


class FailingDisk(Disk):
    """Stops before its n-th operation, a commit of the catalog among them, and does nothing from then on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after
        self.done: list[str] = []

    def step(self, name: str) -> None:
        if self.left <= 0:
            raise PowerCut(name)
        self.left -= 1
        self.done.append(name)

    @contextlib.contextmanager
    def with_commits(self) -> Any:
        """Counts commits as well."""

        def commit(_: sa.Connection) -> None:
            self.step("commit")

        event.listen(sa.Engine, "commit", commit)
        try:
            yield
        finally:
            event.remove(sa.Engine, "commit", commit)


def _guarded(name: str) -> Any:
    def operation(self: FailingDisk, *args: Any) -> Any:
        self.step(name)
        return getattr(Disk, name)(self, *args)

    return operation


for _name in POINTS:
    setattr(FailingDisk, _name, _guarded(_name))


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
    with Store.open(folder, part_max_age_s=-1) as store:
        store.reclaim()
        assert list((folder / "uploads").iterdir()) == []
        versions = store.list_versions("x", 10).items
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
