"""Adapter names and references (`name`, `name@3`, `name@alias`).

Takes text from outside; gives a checked name or Ref, or InvalidArgument. Knows no paths: a name
is data and never becomes one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from loramux_store.errors import InvalidArgument

__all__ = ["Ref", "check_name", "parse_ref"]

# \Z, not $: $ would let a trailing newline through.
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?\Z")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}\Z")
_NAME_RULE = "1 to 64 of a-z 0-9 . _ -, first and last a letter or digit"


@dataclass(frozen=True, slots=True)
class Ref:
    """A name with at most one of a version number or an alias."""

    name: str
    number: int | None = None
    alias: str | None = None


def check_name(name: str, field: str = "name") -> str:
    """The name, if it is one."""
    if not _NAME.match(name):
        raise InvalidArgument(field, name, _NAME_RULE)
    return name


def parse_ref(ref: str) -> Ref:
    """Split `name[@number|@alias]`."""
    name, at, rest = ref.partition("@")
    check_name(name, "adapter")
    if not at:
        return Ref(name)
    if _NUMBER.match(rest):
        return Ref(name, number=int(rest))
    if _NAME.match(rest) and not rest[0].isdigit():
        return Ref(name, alias=rest)
    raise InvalidArgument("adapter", ref, "name, name@3 or name@alias")
