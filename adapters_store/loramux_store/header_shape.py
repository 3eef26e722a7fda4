"""How big a header's JSON would become, counted before it is parsed.

Takes the raw header; gives nothing, or Refused when parsing it would build more objects than a
real file has. A 16 MiB header can hold 300,000 empty tensors or 8 million numbers; parsed, that is
seconds and gigabytes. Knows no JSON beyond strings, brackets and commas.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

from loramux_store.errors import Refused

__all__ = ["MAX_TENSORS", "check", "too_many"]

MAX_TENSORS = 20_000
# A tensor entry has five strings; room for 50,000 more keys and values of metadata.
_MAX_QUOTES = 2 * (5 * MAX_TENSORS + 100_000)
# A tensor entry has one object, two arrays and seven commas at four dimensions.
_MAX_ARRAYS = 2 * (MAX_TENSORS + 2)
_MAX_COMMAS = 16 * MAX_TENSORS + 50_000
_MAX_DEPTH = 3


def check(raw: bytes) -> None:
    """Refuse a header that holds too much, or that is nested deeper than a header is."""
    outside = _outside_strings(raw)
    _check_depth(outside, raw)
    objects = outside.count(b"{")
    if objects > MAX_TENSORS + 2:  # the header itself and __metadata__
        raise too_many(f"{objects - 2} or more tensors", {"byte": _byte(raw, b"{", MAX_TENSORS + 2)})
    for sign, most in ((b"[", _MAX_ARRAYS), (b",", _MAX_COMMAS)):
        if outside.count(sign) > most:
            raise Refused(
                "tensor_info_invalid",
                f"more numbers than {MAX_TENSORS} tensors have",
                {"limit": str(MAX_TENSORS), "byte": _byte(raw, sign, most)},
            )


def _outside_strings(raw: bytes) -> bytes:
    """The header without its strings. A backslash occurs only inside strings, as a pair."""
    plain = raw.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in raw else raw
    if plain.count(b'"') > _MAX_QUOTES:
        byte = _byte(raw, b'"', _MAX_QUOTES // 2)
        raise too_many(f"more strings than {MAX_TENSORS} tensors have", {"byte": byte})
    return b"".join(plain.split(b'"')[::2])


def too_many(found: str, where: Mapping[str, str]) -> Refused:
    """The refusal of a header with too many entries."""
    return Refused(
        "too_many_tensors",
        f"{found} in the header, allowed are {MAX_TENSORS}",
        {"limit": str(MAX_TENSORS), **where},
    )


def _check_depth(outside: bytes, raw: bytes) -> None:
    """Of as many brackets as an allowed header has; the counts refuse what has more."""
    depth = 0
    for before, bracket in enumerate(outside.translate(None, _NO_BRACKETS)[: 8 * MAX_TENSORS]):
        depth += 1 if bracket in b"{[" else -1
        if depth > _MAX_DEPTH:
            byte = _byte(raw, _BRACKETS, before)
            said = f"nested deeper than a safetensors header is, at byte {byte} of the file"
            raise Refused("header_not_json", said, {"byte": byte})


_BRACKETS = b"{}[]"
_NO_BRACKETS = bytes(set(range(256)) - set(_BRACKETS))
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[{}\[\],]', re.DOTALL)


def _byte(raw: bytes, signs: bytes, before: int) -> str:
    """Where in the file a sign stands that comes after so many; looked for only where the file is refused. A quotation
    mark means a string."""
    found = (token.start() for token in _TOKEN.finditer(raw) if token[0][:1] in signs)
    return str(8 + next(itertools.islice(found, before, None), 0))
