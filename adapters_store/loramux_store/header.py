"""The safetensors container, checked before any library sees the bytes.

Takes a path; gives a Container (metadata, tensor table, where the data begin) or Refused. Reads
the header only: tensor values are looked at when they are converted. Knows no adapter formats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from loramux_store import header_names, header_shape
from loramux_store.errors import Refused
from loramux_store.sniff import MAX_FILE, header_length

__all__ = ["DTYPE_BYTES", "MAX_METADATA", "Container", "TensorEntry", "read_container"]

MAX_METADATA = 4 << 20
MAX_DIMS = 8
DTYPE_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: begin and end are offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Container:
    """A checked safetensors file."""

    path: Path
    size: int
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorEntry]


class _Duplicate(ValueError):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def read_container(path: Path, max_file: int = MAX_FILE) -> Container:
    """Check the container of a file and list its tensors."""
    with path.open("rb") as handle:
        length = header_length(handle, max_file)
        size = handle.seek(0, 2)
        handle.seek(8)
        raw = handle.read(length)
    header_shape.check(raw)
    body = _parse(raw)
    del raw
    metadata = _metadata(body.pop("__metadata__", {}))
    if not body:
        raise Refused("empty_file", "the file holds no tensor")
    if len(body) > header_shape.MAX_TENSORS:
        raise header_shape.too_many(f"{len(body)} tensors", {"key": list(body)[header_shape.MAX_TENSORS]})
    header_names.check(body)
    start = 8 + length
    tensors = {name: _entry(name, info, start) for name, info in body.items()}
    _check_coverage(tensors, start, size)
    return Container(path, size, metadata, tensors)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(
            "header_not_utf8", f"byte {8 + error.start} of the file", {"byte": str(8 + error.start)}
        ) from None
    try:
        body = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_Number,
            parse_constant=_Number,
        )
    except _Duplicate as error:
        raise Refused("duplicate_key", f"{error.key!r} is given twice", {"key": error.key}) from None
    except json.JSONDecodeError as error:
        byte = str(8 + len(text[: error.pos].encode()))
        raise Refused(
            "header_not_json", f"the header is not JSON: {error.msg} at byte {byte} of the file", {"byte": byte}
        ) from None
    return cast(dict[str, Any], body)  # it begins with '{'


class _Number(str):
    """A JSON number that is no unsigned integer, kept as text for the message."""

    __slots__ = ()


def _integer(text: str) -> int | _Number:
    return int(text) if text.isdigit() and len(text) <= 19 else _Number(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Duplicate(key)
            seen.add(key)
    return table


def _metadata(found: object) -> dict[str, str]:
    if not isinstance(found, dict):
        raise Refused("metadata_not_string_map", "__metadata__ is not an object")
    table = cast(dict[str, object], found)
    total = 0
    for key, value in table.items():
        # _Number is text to Python, not to JSON.
        if not isinstance(value, str) or isinstance(value, _Number):
            raise Refused("metadata_not_string_map", f"{key!r} is not a string", {"key": key})
        try:
            total += len(key.encode()) + len(value.encode())
        except UnicodeEncodeError:
            raise Refused("metadata_not_string_map", f"{key!r} holds a lone surrogate", {"key": repr(key)}) from None
    if total > MAX_METADATA:
        raise Refused(
            "metadata_too_large",
            f"{total} bytes of metadata, allowed are {MAX_METADATA}",
            {"size": str(total), "limit": str(MAX_METADATA)},
        )
    return cast(dict[str, str], table)


def _entry(name: str, info: object, start: int) -> TensorEntry:
    if not isinstance(info, dict):
        raise _invalid(name, "not an object", info)
    table = cast(dict[str, Any], info)
    if set(table) != _FIELDS:
        raise _invalid(name, f"fields {sorted(table)}, expected {sorted(_FIELDS)}", "")
    dtype, shape = table["dtype"], _integers(name, "shape", table["shape"])
    begin, end = _pair(name, table["data_offsets"])
    if not isinstance(dtype, str) or isinstance(dtype, _Number):
        raise _invalid(name, "dtype is not a string", dtype)
    if dtype not in DTYPE_BYTES:
        raise Refused(
            "unknown_dtype",
            f"{name!r} has dtype {dtype[:40]!r}, known are {', '.join(DTYPE_BYTES)}",
            {"key": name, "dtype": dtype[:40]},
        )
    if len(shape) > MAX_DIMS:
        raise _invalid(name, f"{len(shape)} dimensions, at most {MAX_DIMS}", "")
    if begin > end:
        raise Refused("offset_out_of_range", f"{name!r} ends before it begins: {begin}, {end}", {"key": name})
    needed = math.prod(shape) * DTYPE_BYTES[dtype]
    if needed != end - begin:
        raise Refused(
            "size_mismatch",
            f"{name!r}: {dtype} of shape {list(shape)} takes {needed} bytes, its offsets give {end - begin}",
            {"key": name, "expected": str(needed), "got": str(end - begin)},
        )
    return TensorEntry(name, dtype, shape, start + begin, start + end)


def _integers(name: str, field: str, found: object) -> tuple[int, ...]:
    if not isinstance(found, list):
        raise _invalid(name, f"{field} is not a list", found)
    values = cast(list[object], found)
    for value in values:
        if type(value) is not int:  # bool is an int to Python
            raise _invalid(name, f"{field} holds something that is no unsigned integer", value)
    return tuple(cast(list[int], values))


def _pair(name: str, found: object) -> tuple[int, int]:
    values = _integers(name, "data_offsets", found)
    if len(values) != 2:
        raise _invalid(name, "data_offsets does not hold two numbers", found)
    return values[0], values[1]


def _invalid(name: str, why: str, value: object) -> Refused:
    return Refused("tensor_info_invalid", f"{name!r}: {why}", {"key": name, "value": str(value)[:80]})


def _check_coverage(tensors: Mapping[str, TensorEntry], start: int, size: int) -> None:
    """Every byte of the data belongs to exactly one tensor: no room for a second file."""
    at = start
    for entry in sorted(tensors.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != at:
            reason = "offset_overlap" if entry.begin < at else "offset_hole"
            raise Refused(
                reason,
                f"{entry.name!r} begins at byte {entry.begin - start} of the data, expected {at - start}",
                {"key": entry.name, "expected": str(at - start), "got": str(entry.begin - start)},
            )
        at = entry.end
    if at > size:
        raise Refused(
            "size_mismatch",
            f"truncated: the tensors take {at} bytes, the file has {size}",
            {"expected": str(at), "got": str(size), "truncated": "true"},
        )
    if at < size:
        raise Refused(
            "trailing_bytes",
            f"{size - at} bytes after the last tensor",
            {"expected": str(at), "got": str(size)},
        )
