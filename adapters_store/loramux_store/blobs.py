"""The folders of a store: uploads, blobs and compiled files.

Takes digests and finished part files; gives paths. Knows how a file becomes durable, not what is
in it.
"""

from __future__ import annotations

import hashlib
import math
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loramux_store.disk import Disk
from loramux_store.errors import DataLoss, StoreError

__all__ = ["READ_CHUNK", "Shelf", "StoredFile"]

READ_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A blob, or with a layout's digest the compiled file of a version."""

    path: Path
    digest: str
    layout: str | None = None


class Shelf:
    """Where files of a store lie."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self.root = root
        self.disk = disk
        self.uploads = root / "uploads"
        self.blobs = root / "blobs" / "sha256"
        self.compiled = root / "compiled"

    def prepare(self) -> None:
        """Create the folders, durably."""
        for folder in (self.root, self.uploads, self.blobs, self.compiled):
            self.disk.make_folder(folder)
            self.disk.sync_folder(folder.parent)

    def new_part(self) -> Path:
        """A fresh name in uploads."""
        return self.uploads / f"{uuid.uuid4().hex}.part"

    def expire_parts(self, max_age_s: float) -> list[int]:
        """Remove part files untouched for longer than max_age_s; the bytes of each."""
        return [self.discard(part) for part in self.uploads.glob("*.part") if _age_s(part) > max_age_s]

    def drop(self, path: Path) -> None:
        """Remove a leftover. Where the disk refuses, `Store.reclaim` tries again another day."""
        with suppress(StoreError):
            self.disk.remove(path)

    def discard(self, path: Path) -> int:
        """Remove a file; how many bytes it had."""
        try:
            size = path.lstat().st_size
        except FileNotFoundError:
            return 0
        self.disk.remove(path)
        return size

    def blob(self, digest: str) -> Path:
        """Where the bytes of that sha256 lie."""
        return self.blobs / digest[:2] / digest

    def compiled_file(self, layout_digest: str, digest: str) -> Path:
        """Where the canonical factors of a version lie."""
        return self.compiled / layout_digest / f"{digest}.safetensors"

    def files(self) -> Iterator[StoredFile]:
        """Every blob and every compiled file that is there."""
        for blob in self.blobs.glob("??/*"):
            yield StoredFile(blob, blob.name)
        for compiled in self.compiled.glob("*/*.safetensors"):
            yield StoredFile(compiled, compiled.stem, compiled.parent.name)

    def verified_blob(self, digest: str) -> Path:
        """The blob's path, once its bytes have been hashed again."""
        path = self.blob(digest)
        found = hashlib.sha256()
        try:
            with path.open("rb") as handle:
                while chunk := handle.read(READ_CHUNK):
                    found.update(chunk)
        except FileNotFoundError as error:
            raise DataLoss(digest, "the file is gone") from error
        except OSError as error:
            raise DataLoss(digest, f"the file cannot be read: {error.strerror}") from error
        if found.hexdigest() != digest:
            raise DataLoss(digest, f"the file now has sha256 {found.hexdigest()}")
        return path


def _age_s(path: Path) -> float:
    """Since the last write; negative infinity where another process has just finished the file."""
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return -math.inf
