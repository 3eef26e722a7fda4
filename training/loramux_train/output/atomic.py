"""Files that are whole or not there.

Takes pieces of bytes and a place; gives a file there, in the stead of what was there before. A crash at any point
leaves the one or the other. Knows no content.
"""

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["sync_folder", "write_whole"]


def write_whole(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Written beside, brought to the disk, renamed. Raises OSError, and leaves nothing new then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with draft.open("wb") as handle:
            for piece in pieces:
                handle.write(piece)
            handle.flush()
            os.fsync(handle.fileno())
        draft.replace(path)
        sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """The names in a folder reach the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
