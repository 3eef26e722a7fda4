"""The folders of a store: uploads, blobs and compiled files.

Takes digests and finished part files; gives paths. Knows how a file becomes durable, not what is
in it.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from pathlib import Path

from loramux_store.disk import Disk
from loramux_store.errors import DataLoss

__all__ = ["READ_CHUNK", "Shelf"]

READ_CHUNK = 1 << 20


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
            folder.mkdir(parents=True, exist_ok=True)
            self.disk.sync_folder(folder.parent)

    def new_part(self) -> Path:
        """A fresh name in uploads."""
        return self.uploads / f"{uuid.uuid4().hex}.part"

    def expire_parts(self, max_age_s: float) -> int:
        """Remove part files untouched for longer than max_age_s; how many there were."""
        removed = 0
        for part in self.uploads.glob("*.part"):
            try:
                stale = time.time() - part.lstat().st_mtime > max_age_s
            except FileNotFoundError:
                continue  # another process has just finished it
            if stale:
                self.disk.remove(part)
                removed += 1
        return removed

    def blob(self, digest: str) -> Path:
        """Where the bytes of that sha256 lie."""
        return self.blobs / digest[:2] / digest

    def compiled_file(self, layout_digest: str, digest: str) -> Path:
        """Where the canonical factors of a version lie."""
        return self.compiled / layout_digest / f"{digest}.safetensors"

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
        if found.hexdigest() != digest:
            raise DataLoss(digest, f"the file now has sha256 {found.hexdigest()}")
        return path
