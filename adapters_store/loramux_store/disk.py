"""The few things the store does to files, each a point where a machine may stop.

Takes paths and bytes; gives effects, and NoSpace, ReadOnly or DiskFailed where the system refuses.
Tests put a Disk that fails in place of this one. Knows no blobs and no catalog.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from loramux_store.errors import DiskFailed, NoSpace, ReadOnly, UnsafeFilesystem

__all__ = ["Disk", "free_bytes", "refuse_network"]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}

# WAL needs shared memory and honest locks; of these file systems neither can be had.
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse", "9p", "ceph", "glusterfs", "afs"}


class Disk:
    """Write, fsync, rename, remove. refused: whether the system has refused any of it since somebody set that back."""

    def __init__(self) -> None:
        self._durable: set[Path] = set()
        self.refused = False

    def create(self, path: Path) -> BinaryIO:
        """A new file; an existing one of that name is an error, and so is a link."""
        with self._told("create", path.parent):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
            return os.fdopen(os.open(path, flags, 0o644), "w+b", buffering=0)

    def open_part(self, path: Path) -> BinaryIO:
        """A file to append to, new or not, but no link."""
        with self._told("open", path.parent):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
            return os.fdopen(os.open(path, flags, 0o644), "a+b", buffering=0)

    def lock(self, handle: BinaryIO) -> bool:
        """Hold the file until the handle is closed, also against other processes; False if another does."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def truncate(self, handle: BinaryIO) -> None:
        """Empty the file."""
        with self._told("truncate", handle.fileno()):
            os.ftruncate(handle.fileno(), 0)

    def write(self, handle: BinaryIO, data: bytes | memoryview) -> None:
        """All of data at the current position, of a part at its end."""
        view = memoryview(data)
        with self._told("write", handle.fileno(), len(view)):
            while view:
                view = view[os.write(handle.fileno(), view) :]

    def sync(self, handle: BinaryIO) -> None:
        """The file's bytes reach the disk."""
        with self._told("fsync", handle.fileno()):
            os.fsync(handle.fileno())

    def publish(self, source: Path, target: Path) -> None:
        """Give a synced file its final name, read-only, and make the name durable."""
        with self._told("chmod", source.parent):
            os.chmod(source, 0o444)
        if target.parent not in self._durable or not target.parent.is_dir():
            self.make_folder(target.parent)
            self.sync_folder(target.parent.parent)
            self._durable.add(target.parent)
        self.rename(source, target)
        self.sync_folder(target.parent)

    def rename(self, source: Path, target: Path) -> None:
        """Atomic; replaces the target."""
        with self._told("rename", target.parent):
            os.replace(source, target)

    def make_folder(self, folder: Path) -> None:
        """There, with every folder above it."""
        with self._told("mkdir", folder.parent):
            folder.mkdir(parents=True, exist_ok=True)

    def sync_folder(self, folder: Path) -> None:
        """Names in the folder reach the disk."""
        with self._told("fsync of a folder", folder):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def remove(self, path: Path) -> None:
        """Gone, or was not there."""
        with self._told("unlink", path.parent):
            path.unlink(missing_ok=True)

    @contextmanager
    def _told(self, operation: str, place: Path | int, needed: int = 0) -> Generator[None]:
        try:
            yield
        except OSError as error:
            self.refused = True
            if error.errno in _FULL:
                raise NoSpace(needed, free_bytes(place)) from error
            reason = os.strerror(error.errno) if error.errno else str(error)
            kind = ReadOnly if error.errno in _READ_ONLY else DiskFailed
            raise kind(operation, reason) from error


def free_bytes(place: Path | int) -> int:
    """What an ordinary user may still write there; a path or an open file."""
    info = os.statvfs(place)
    return info.f_bavail * info.f_frsize


def refuse_network(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> None:
    """Raise UnsafeFilesystem where SQLite's WAL is unsafe; silent where mounts are not listed."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return
    kind = _filesystem(folder.resolve(), lines)
    if kind in _NETWORK or kind.startswith("fuse."):
        raise UnsafeFilesystem(str(folder), kind)


def _filesystem(folder: Path, lines: list[str]) -> str:
    best = (-1, "")
    for line in lines:
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or not kind:
            continue
        point = Path(fields[4].replace("\\040", " "))
        # the deepest mount point holds the folder; the last of equal ones lies on top
        if folder.is_relative_to(point) and len(point.parts) >= best[0]:
            best = (len(point.parts), kind[0])
    return best[1]
