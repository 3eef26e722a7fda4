"""What must be on the disk before what: bytes before a name, names before the row.

A cut between operations (test_crashes.py) cannot see a forgotten fsync; the order of operations can.
"""

from pathlib import Path
from typing import BinaryIO

import adapter_files as af
import sqlalchemy as sa
from sqlalchemy import event

from loramux_store import Store, UploadSpec
from loramux_store.disk import Disk

KEY = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


class RecordingDisk(Disk):
    """Notes every operation; files go by their inode, which a rename keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[str, object]] = []

    def write(self, handle: BinaryIO, data: bytes | memoryview) -> None:
        self.log.append(("write", Path(f"/proc/self/fd/{handle.fileno()}").stat().st_ino))
        super().write(handle, data)

    def sync(self, handle: BinaryIO) -> None:
        super().sync(handle)
        self.log.append(("sync", Path(f"/proc/self/fd/{handle.fileno()}").stat().st_ino))

    def rename(self, source: Path, target: Path) -> None:
        inode = source.stat().st_ino
        assert [op for op, what in self.log if what == inode][-1] == "sync", f"{target} has bytes not synced"
        super().rename(source, target)
        self.log.append(("rename", target))

    def sync_folder(self, folder: Path) -> None:
        super().sync_folder(folder)
        self.log.append(("folder", folder))


def test_bytes_then_names_then_the_row(tmp_path: Path) -> None:
    disk = RecordingDisk()
    file = af.write(tmp_path / "a.safetensors", af.kohya_tensors(af.factors(af.TOY_SD1, [KEY], alpha=1.0)))
    with Store.open(tmp_path / "store", disk=disk) as store:
        store.register_layout(af.TOY_SD1)
        disk.log.clear()

        def note_commit(_: sa.Connection) -> None:
            disk.log.append(("commit", None))

        event.listen(sa.Engine, "commit", note_commit)
        try:
            version = store.publish(file, UploadSpec("a")).version
        finally:
            event.remove(sa.Engine, "commit", note_commit)
        assert version is not None
        blob = tmp_path / "store/blobs/sha256" / version.blob_digest[:2] / version.blob_digest
        compiled = tmp_path / "store/compiled" / version.layout_digest / f"{version.digest}.safetensors"
        assert store.compiled(version) == compiled
    uploads = tmp_path / "store/uploads"  # whose files may be lost
    steps = [(op, what) for op, what in disk.log if op in ("rename", "folder") and uploads not in what.parents]
    expected: list[tuple[str, object]] = []
    for target in (blob, compiled):
        # a new folder's own name first, then the file's name in it
        expected += [("folder", target.parent.parent), ("rename", target), ("folder", target.parent)]
    assert steps == expected
    assert disk.log[-1] == ("commit", None), "the row is last"
    assert [step for step in disk.log if step == ("commit", None)], disk.log
    assert not blob.stat().st_mode & 0o222 and not compiled.stat().st_mode & 0o222
