"""Adapter names, references (`name`, `name@3`, `name@alias`) and triggers.

Takes text from outside; gives a checked name, Ref or trigger, or InvalidArgument. Knows no paths: a name
is data and never becomes one.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from loramux_store.errors import InvalidArgument

__all__ = ["MAX_TRIGGER", "Ref", "check_alias", "check_name", "check_trigger", "parse_ref", "spelled", "trigger_fault"]

MAX_TRIGGER = 256

# \Z, not $: $ would let a trailing newline through.
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?\Z")
_ALIAS = re.compile(r"[a-z]([a-z0-9._-]{0,62}[a-z0-9])?\Z")  # no digit first: that is a version
_NUMBER = re.compile(r"[1-9][0-9]{0,8}\Z")
_NAME_RULE = "1 to 64 of a-z 0-9 . _ -, first and last a letter or digit"


@dataclass(frozen=True, slots=True)
class Ref:
    """A name with at most one of a version number or an alias."""

    name: str
    number: int | None = None
    alias: str | None = None

    @property
    def at(self) -> str:
        """What follows the @; empty where there is none."""
        return str(self.alias or self.number or "")


def check_name(name: str, field: str = "name") -> str:
    """The name, if it is one."""
    if not _NAME.match(name):
        raise InvalidArgument(field, name, _NAME_RULE)
    return name


def check_alias(alias: str) -> str:
    """The alias, if it is one."""
    if not _ALIAS.match(alias):
        raise InvalidArgument("aliases", alias, "1 to 64 of a-z 0-9 . _ -, first a letter, last a letter or digit")
    return alias


def parse_ref(ref: str) -> Ref:
    """Split `name[@number|@alias]`."""
    name, at, rest = ref.partition("@")
    check_name(name, "adapter")
    if not at:
        return Ref(name)
    if _NUMBER.match(rest):
        return Ref(name, number=int(rest))
    if _ALIAS.match(rest):
        return Ref(name, alias=rest)
    raise InvalidArgument("adapter", ref, "name, name@3 or name@alias")


def trigger_fault(text: str) -> str | None:
    """Why a text cannot stand for an embedding in a prompt, if it cannot."""
    if not text or len(text) > MAX_TRIGGER:
        return f"1 to {MAX_TRIGGER} characters"
    if text == "*":  # what files say that were never given a name
        return "something to find in a prompt"
    if text != text.strip() or any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
        return "no space at its ends and no control characters"
    return None


def spelled(trigger: str) -> str:
    """What triggers have in common that one text of a prompt calls: upper and lower case and white space are alike."""
    return " ".join(trigger.casefold().split())


def check_trigger(text: str, field: str) -> str:
    """The trigger in Unicode's normal form C, which tokenizers read prompts in."""
    fault = trigger_fault(text)  # of its length too: normalising takes time as the number of its marks squared
    normal = text if fault else unicodedata.normalize("NFC", text)
    if fault := fault or trigger_fault(normal):
        raise InvalidArgument(field, text, fault)
    return normal
