"""One number out of a file: an alpha or a scale.

Takes a tensor entry; gives a float, through float64, or Refused. Pure Python: reading a header's
worth of alphas needs no torch.
"""

from __future__ import annotations

import math
import struct
from typing import BinaryIO

from loramux_store.errors import Refused
from loramux_store.header import TensorEntry

__all__ = ["peek_scalar", "read_scalar"]

_STRUCT = {
    "F64": "<d", "F32": "<f", "F16": "<e", "U8": "<B", "I8": "<b", "U16": "<H", "I16": "<h",
    "U32": "<I", "I32": "<i", "U64": "<Q", "I64": "<q",
}  # fmt: skip


def read_scalar(handle: BinaryIO, entry: TensorEntry, module: str) -> float:
    """The value of a tensor of shape [] or [1], of any real dtype; finite."""
    value = peek_scalar(handle, entry, module)
    if not math.isfinite(value):
        raise Refused(
            "alpha_non_finite",
            f"{entry.name!r} is {value}",
            {"module": module, "key": entry.name, "got": str(value)},
        )
    return value


def peek_scalar(handle: BinaryIO, entry: TensorEntry, module: str) -> float:
    """The same, whatever it is."""
    if entry.shape not in ((), (1,)) or entry.dtype in ("BOOL", "C64"):
        raise Refused(
            "alpha_bad_shape",
            f"{entry.name!r} is {entry.dtype} of shape {list(entry.shape)}, expected one number",
            {"module": module, "key": entry.name, "got": str(list(entry.shape)), "expected": "[]"},
        )
    handle.seek(entry.begin)
    return _decode(handle.read(entry.end - entry.begin), entry)


def _decode(raw: bytes, entry: TensorEntry) -> float:
    if code := _STRUCT.get(entry.dtype):
        return float(struct.unpack(code, raw)[0])
    if entry.dtype == "BF16":
        return float(struct.unpack("<f", b"\0\0" + raw)[0])
    if entry.dtype == "F8_E5M2":  # the upper half of a half
        return float(struct.unpack("<e", b"\0" + raw)[0])
    if entry.dtype == "F8_E4M3":
        return _e4m3(raw[0])
    raise Refused(
        "unsupported_dtype",
        f"{entry.name!r} has dtype {entry.dtype}, which holds no plain number",
        {"key": entry.name, "dtype": entry.dtype},
    )


def _e4m3(byte: int) -> float:
    """4 bits of exponent (bias 7), 3 of mantissa; no infinities, all ones is NaN."""
    sign = -1.0 if byte & 0x80 else 1.0
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (8 + mantissa) * 2.0 ** (exponent - 10)
