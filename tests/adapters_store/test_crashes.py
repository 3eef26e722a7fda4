"""A machine that stops at any point of an upload leaves the version whole, or leftovers that can be reclaimed."""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import adapter_files as af
import pytest

from loramux_store import Store, UploadSpec
from loramux_store.disk import Disk
from loramux_store.errors import NotFound

PATH = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
POINTS = ("create", "write", "sync", "publish", "rename", "sync_folder", "remove")


class PowerCut(BaseException):
    """The machine stops; nothing after it runs."""


class FailingDisk(Disk):
    """Stops before its n-th operation, and does nothing from then on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after
        self.done: list[str] = []

    def _step(self, name: str) -> None:
        if self.left <= 0:
            raise PowerCut(name)
        self.left -= 1
        self.done.append(name)


def _guarded(name: str) -> Any:
    def operation(self: FailingDisk, *args: Any) -> Any:
        self._step(name)
        return getattr(Disk, name)(self, *args)

    return operation


for _name in POINTS:
    setattr(FailingDisk, _name, _guarded(_name))


def operations_of_an_upload(folder: Path, file: Path) -> int:
    disk = FailingDisk(10_000)
    with Store.open(folder, disk=disk) as store:
        store.register_layout(af.TOY_SD1)
        before = len(disk.done)
        store.publish(file, UploadSpec(name="x"))
    assert {"sync", "rename", "sync_folder"} <= set(disk.done[before:])
    return len(disk.done) - before


def check_whole_or_absent(folder: Path, file: Path) -> bool:
    """Opens the store as after a restart; whether the version is there, and if so, whole."""
    with Store.open(folder, part_max_age_s=-1) as store:
        assert list((folder / "uploads").iterdir()) == []
        for blob in (folder / "blobs").rglob("*"):
            if blob.is_file():
                assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
        try:
            version = store.resolve("x")
        except NotFound:
            whole = False
        else:
            assert version.blob_digest == hashlib.sha256(file.read_bytes()).hexdigest()
            assert af.compiled_delta(store.compiled(version), af.TOY_SD1)[PATH].norm() > 0
            whole = True
        assert store.publish(file, UploadSpec(name="x")).version is not None, "the store takes it afterwards"
        return whole


def test_a_power_cut_at_every_operation(tmp_path: Path) -> None:
    file = af.write(tmp_path / "a.safetensors", af.peft_tensors(af.factors(af.TOY_SD1, [PATH])))
    count = operations_of_an_upload(tmp_path / "whole", file)
    outcomes = []
    for after in range(count + 1):
        folder = tmp_path / str(after)
        with Store.open(folder) as store:
            store.register_layout(af.TOY_SD1)
        disk = FailingDisk(10_000)
        store = Store.open(folder, disk=disk)
        disk.left = after
        with contextlib.suppress(PowerCut):
            store.publish(file, UploadSpec(name="x"))
        store.close()
        outcomes.append(check_whole_or_absent(folder, file))
    assert outcomes[0] is False and outcomes[-1] is True and outcomes == sorted(outcomes)


def test_a_full_disk_is_told_and_leaves_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from loramux_store.errors import NoSpace

    file = af.write(tmp_path / "a.safetensors", af.peft_tensors(af.factors(af.TOY_SD1, [PATH])))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(NoSpace):
        store.publish(file, UploadSpec(name="x"))
    monkeypatch.undo()
    assert list((tmp_path / "store" / "uploads").iterdir()) == []
    assert store.publish(file, UploadSpec(name="x")).created
