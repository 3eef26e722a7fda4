"""Images to draw over, on their way out.

Takes: bytes, a path or an open file. Gives: the bytes. Does not know what they show; the server checks.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Protocol, runtime_checkable

from loramux_client.errors import InvalidArgument, Violation


@runtime_checkable
class Readable(Protocol):
    """A file opened for reading bytes, or something like it."""

    def read(self) -> bytes:
        """What is left of it."""
        ...


ImageSource = bytes | str | PathLike[str] | Readable
"""A PNG, JPEG or WebP file: its bytes, its path, or the file itself, opened in binary mode."""


def image_bytes(field: str, source: ImageSource) -> bytes:
    """The file's bytes; OSError where there is no such file, InvalidArgument for what cannot be one."""
    if isinstance(source, str | PathLike):
        return Path(source).read_bytes()
    given = _given(source)
    if isinstance(given, bytes | bytearray):
        return bytes(given)
    said = f"is {type(given).__name__}, expected bytes, a path, or a file opened in binary mode"
    raise InvalidArgument(f"{field} {said}", reason="UNSENDABLE", violations=[Violation(field, said)])


def _given(source: bytes | Readable) -> object:
    return source.read() if isinstance(source, Readable) else source
