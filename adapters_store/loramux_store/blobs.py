"""The folders of a store: uploads, blobs and compiled files.

Takes digests and finished part files; gives paths. Knows how a file becomes durable, not what is
in it.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loramux_store.disk import Disk
from loramux_store.errors import DataLoss, StoreError

__all__ = ["READ_CHUNK", "Shelf", "StoredFile", "sha256_of"]

READ_CHUNK = 1 << 20
_SMALL = 1 << 12
SEND_CHUNK = 1 << 18  # small enough that a message does not hold up a server's event loop


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
        self.quarantine = root / "quarantine"

    def prepare(self) -> None:
        """Create the folders, durably."""
        for folder in (self.root, self.uploads, self.blobs, self.compiled):
            self.disk.make_folder(folder)
            self.disk.sync_folder(folder.parent)

    def new_part(self) -> Path:
        """A fresh name in uploads, for a file on its way to another folder."""
        return self.uploads / f"{uuid.uuid4().hex}.part"

    def drop(self, path: Path) -> None:
        """Remove a leftover. Where the disk refuses, `Store.reclaim` tries again another day."""
        with suppress(StoreError):
            self.disk.remove(path)

    def try_write(self) -> None:
        """Writes something small to the disk and removes it; raises what the disk says to that."""
        part = self.new_part()
        try:
            with self.disk.create(part) as handle:
                self.disk.write(handle, bytes(_SMALL))
                self.disk.sync(handle)
        finally:
            self.drop(part)

    def discard(self, path: Path) -> int:
        """Remove a file; how many bytes it had."""
        size = self.size(path)
        self.disk.remove(path)
        return size

    def set_aside(self, digest: str) -> Path:
        """Move a blob whose bytes are not its own any more to the quarantine; where it lies then."""
        kept = self.quarantine / digest
        self.disk.make_folder(self.quarantine)
        self.disk.sync_folder(self.root)
        self.disk.rename(self.blob(digest), kept)
        self.disk.sync_folder(self.quarantine)
        self.disk.sync_folder(self.blob(digest).parent)
        return kept

    def relative(self, path: Path) -> str:
        """The path as seen from the store's folder."""
        return path.relative_to(self.root).as_posix()

    def size(self, path: Path) -> int:
        """Bytes of a file; 0 where it is gone."""
        try:
            return path.lstat().st_size
        except FileNotFoundError:
            return 0

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
        try:
            found = sha256_of(path)
        except FileNotFoundError as error:
            raise DataLoss(digest, "the file is gone") from error
        except OSError as error:
            raise DataLoss(digest, f"the file cannot be read: {error.strerror}") from error
        if found != digest:
            raise DataLoss(digest, f"the file now has sha256 {found}")
        return path

    def read_blob(self, digest: str, size: int, offset: int) -> Generator[bytes]:
        """The blob's bytes from offset on, hashed on the way; the last come only if all were right.

        Raises: DataLoss.
        """
        path, found, at = self.blob(digest), hashlib.sha256(), 0
        try:
            with path.open("rb") as handle:
                while at < size and (chunk := handle.read(min(SEND_CHUNK, size - at))):
                    found.update(chunk)
                    begin, at = at, at + len(chunk)
                    if at == size and found.hexdigest() != digest:
                        break
                    if at > offset:
                        yield chunk[max(0, offset - begin) :]
        except OSError as error:
            raise DataLoss(digest, f"the file cannot be read: {error.strerror}") from error
        if found.hexdigest() != digest:
            raise DataLoss(digest, f"the first {at} of {size} bytes now have sha256 {found.hexdigest()}")


def sha256_of(path: Path) -> str:
    """Of the bytes that the file has now."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
