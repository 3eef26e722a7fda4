"""What a file is, by its content, before any parser sees it.

Takes the first bytes, the last bytes and the size; gives None for a safetensors header worth
parsing, or the Refused to raise. Knows nothing of what is inside the header.
"""

from __future__ import annotations

import os
import re
from typing import BinaryIO

from loramux_store.errors import Refused, TooLarge

__all__ = ["MAX_FILE", "MAX_HEADER", "header_length"]

MAX_HEADER = 16 << 20
MAX_FILE = 4 << 30
_HEAD = 4096
_TAIL = 66_000  # a zip's end record and the start of its directory
_LFS = b"version https://git-lfs.github.com/spec/v1"
_HTML = (b"<!doctype", b"<html", b'{"error"')
_IMAGES = {b"\x89PNG\r\n\x1a\n": "png", b"RIFF": "webp", b"\xff\xd8\xff": "jpeg"}
_CONTAINERS = {b"GGUF": "gguf", b"\x89HDF\r\n\x1a\n": "hdf5"}
_ONNX = re.compile(rb"\x08[\x01-\x0f](\x12|:|B)")


def header_length(handle: BinaryIO, max_file: int = MAX_FILE) -> int:
    """Bytes of JSON in a safetensors header, from a handle at any position."""
    size = handle.seek(0, os.SEEK_END)
    if size < 10:
        raise Refused("too_small", f"{size} bytes is no safetensors file", {"size": str(size)})
    if size > max_file:
        raise TooLarge(size, max_file)
    handle.seek(0)
    head = handle.read(min(_HEAD, size))
    claimed = int.from_bytes(head[:8], "little")
    # Before the pickle test: a length of 640, 896, 1152 or 1408 begins like a pickle.
    if 2 <= claimed <= min(MAX_HEADER, size - 8) and head[8:9] == b"{":
        return claimed
    handle.seek(max(0, size - _TAIL))
    raise _other(head, handle.read(_TAIL), claimed, size)


def _other(head: bytes, tail: bytes, claimed: int, size: int) -> Refused:
    if head.startswith(_LFS):
        return Refused("git_lfs_pointer", "a Git LFS pointer, not the file it points to")
    if head.lstrip().lower().startswith(_HTML):
        return Refused("html_page", "a web page or an error answer, not a model file")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _archive(head, tail)
    if re.match(rb"\x80[\x02-\x05]", head) or head[257:262] == b"ustar":
        return _pickle("a pickle")
    for magic, kind in _IMAGES.items():
        if head.startswith(magic):
            return Refused("not_an_embedding", f"a {kind} image", {"container": kind})
    for magic, kind in _CONTAINERS.items():
        if head.startswith(magic):
            return _container(kind)
    if _ONNX.match(head):
        return _container("onnx")
    return _no_header(head, claimed, size)


def _archive(head: bytes, tail: bytes) -> Refused:
    if b"data.pkl" in head or b"data.pkl" in tail:
        return _pickle("a torch archive, which holds a pickle")
    return Refused("archive_not_allowed", "a zip archive: upload the safetensors file inside it")


def _pickle(what: str) -> Refused:
    return Refused(
        "pickle_not_allowed",
        f"{what}: it could run code when loaded and is never opened here; "
        "convert it to safetensors on a machine you trust",
    )


def _container(kind: str) -> Refused:
    return Refused(f"unsupported_container:{kind}", f"a {kind} file; expected safetensors")


def _no_header(head: bytes, claimed: int, size: int) -> Refused:
    limit = min(MAX_HEADER, size - 8)
    detail = {"header_bytes": str(claimed), "limit": str(limit)}
    if not 2 <= claimed <= limit:
        return Refused(
            "header_len_out_of_range",
            f"no safetensors file, or a truncated one: it claims a header of {claimed} bytes, "
            f"possible are 2 to {limit}",
            detail,
        )
    return Refused("header_not_json", f"the header begins with {head[8:9]!r}, not '{{'", {**detail, "byte": "8"})
