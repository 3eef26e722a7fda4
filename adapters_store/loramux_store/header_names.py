"""The names of a header's tensors, checked before anything else looks at them.

Takes the names; gives nothing, or Refused. Knows no adapter formats: what is refused here is in no file that trainers
write, and would do harm in a log, a path or a report.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

from loramux_store.errors import Refused

__all__ = ["MAX_NAME", "check", "unnormal"]

MAX_NAME = 512
"""Bytes of a name in UTF-8."""
_MAX_GROUPS = 10_000  # letters with their marks, in all names; no script has as many
# Names that other languages' objects own; no adapter has them, a report in JSON would carry them.
_HOSTILE_PARTS = {"__proto__", "constructor", "prototype", ".."}


def check(body: Collection[str]) -> None:
    """Refuse at the first fault. Lengths come first: what follows looks at letters."""
    for name in body:
        if why := _length_fault(name):
            raise _illegal(name, why)
    foreign = [name for name in body if not name.isascii()]
    letters = set[str]().union(*foreign)
    bad = frozenset(letter for letter in letters if _letter_fault(letter))
    for name in body:
        if why := _name_fault(name, bad):
            raise _illegal(name, why)
    if (name := unnormal(foreign, letters)) is not None:
        if unicodedata.normalize("NFC", name) in body:
            raise Refused("duplicate_key", f"{name!r} is given twice, spelled differently", {"key": name})
        raise _illegal(name, "not in Unicode normal form C")


def unnormal(names: Sequence[str], letters: Iterable[str]) -> str | None:
    """The first name that is not in Unicode's normal form C. letters: of all names.

    To put names in normal form takes longer than to read their file. So only letters are looked at that could spoil
    it, with the one before them, and each such group once. Raises Refused where those are too many."""
    joining = "".join(letter for letter in letters if _joins(letter))
    if not joining:
        return None
    groups, found = re.compile(f".?[{joining}]+", re.DOTALL), set[str]()
    for name in names:
        found.update(groups.findall(name))
        if len(found) > _MAX_GROUPS:
            raise _illegal(name, f"the names have more than {_MAX_GROUPS} different letters with marks")
    wrong = {group for group in found if not unicodedata.is_normalized("NFC", group)}
    return next((name for name in names if not wrong.isdisjoint(groups.findall(name))), None) if wrong else None


def _joins(letter: str) -> bool:
    """Whether a letter may become one with the letter before it, change places with it, or is not normal itself."""
    hangul = "\u1161" <= letter <= "\u11c2"  # vowels and final consonants
    return hangul or unicodedata.category(letter)[0] == "M" or not unicodedata.is_normalized("NFC", letter)


def _illegal(name: str, why: str) -> Refused:
    shown = ascii(name[:100])
    return Refused("name_illegal", f"tensor name {shown}: {why}", {"key": shown})


def _letter_fault(letter: str) -> str:
    category = unicodedata.category(letter)
    if category[0] == "C":
        return "has a control or format character"
    return "has a pictograph or separator" if category in ("So", "Zl", "Zp") else ""


def _length_fault(name: str) -> str:
    if not name:
        return "empty"
    if len(name) > MAX_NAME or len(name.encode("utf-8", "replace")) > MAX_NAME:
        return f"longer than {MAX_NAME} bytes"
    return ""


def _name_fault(name: str, bad: frozenset[str]) -> str:
    """bad: letters, of those that are not ASCII, that no name may have."""
    if name.isascii() and not name.isprintable():
        return "has a control or format character"
    if found := bad.intersection(name) if bad else ():
        return _letter_fault(min(found))
    hostile = "../" in name or "..\\" in name or name[0] in "/\\" or _has_hostile_part(name)
    return "looks like a path or a reserved word" if hostile else ""


def _has_hostile_part(name: str) -> bool:
    if not any(part in name for part in _HOSTILE_PARTS):
        return False
    return not _HOSTILE_PARTS.isdisjoint(name.replace("/", ".").replace("\\", ".").split("."))
