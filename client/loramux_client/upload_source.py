"""The bytes of an upload, and their way out.

Takes: a path or bytes; messages made of them. Gives: size, sha256 and chunks; the messages with
progress told. Does not know what the bytes mean or which call carries them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Generic, TypeVar

CHUNK_BYTES = 256 * 1024
"""Between 64 KiB and 1 MiB: small enough not to block a server's event loop, large enough that the
cost of a message does not show."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file's or a buffer's bytes; a file is read again for its chunks, never held whole."""

    content: Path | bytes
    size: int
    sha256: str

    def chunks(self, offset: int = 0) -> Iterator[bytes]:
        """The bytes from offset on, CHUNK_BYTES at a time."""
        return _chunks(self.content, offset)


def open_source(content: str | PathLike[str] | bytes) -> Source:
    """Reads the content once for size and sha256; OSError where there is no such file."""
    kept = content if isinstance(content, bytes) else Path(content)
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(kept):
        digest.update(chunk)
        size += len(chunk)
    return Source(kept, size, digest.hexdigest())


def _chunks(content: Path | bytes, offset: int = 0) -> Iterator[bytes]:
    if isinstance(content, bytes):
        for start in range(offset, len(content), CHUNK_BYTES):
            yield content[start : start + CHUNK_BYTES]
        return
    with content.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


Message = TypeVar("Message")


class Outgoing(Generic[Message]):
    """Messages on their way out: the spec, then chunks. A failure ends them early and is kept:
    gRPC's sending thread would print its trace and tell the caller only that something went wrong.

    offset: where the chunks begin, size: where they end. Progress is told before a chunk leaves, so that
    a callback that raises always leaves an upload too short to be accepted.
    """

    def __init__(
        self,
        messages: Iterator[Message],
        offset: int,
        size: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._messages = messages
        self._offset = offset
        self._size = size
        self._progress = progress
        self._failure: Exception | None = None

    def __iter__(self) -> Iterator[Message]:
        try:
            for chunks, message in enumerate(self._messages):
                if chunks and self._progress is not None:
                    self._progress(min(self._offset + chunks * CHUNK_BYTES, self._size), self._size)
                yield message
        except Exception as failure:
            self._failure = failure

    def raise_failure(self) -> None:
        """Raises what ended the messages early."""
        if self._failure is not None:
            raise self._failure
