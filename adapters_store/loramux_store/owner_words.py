"""What owners say of adapters: labels, weights, words.

Takes what came from outside with an upload or an update; gives nothing, or InvalidArgument. Knows no catalog.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping

from loramux_store.errors import InvalidArgument
from loramux_store.names import check_alias
from loramux_store.record import AdapterChange, UploadSpec

__all__ = ["MAX_TEXT", "MAX_WORDS", "check_change", "check_said"]

MAX_WORDS = 64
MAX_TEXT = 256
_MAX_DESCRIPTION = 8192
_MAX_NOTE = 1024
_MAX_LABELS = 64
_MAX_ALIASES = 64
_MAX_WEIGHT = 16.0  # what a request may ask for


def check_said(said: UploadSpec | AdapterChange) -> None:
    """Every field that people read."""
    weight = said.default_weight
    if weight is not None and not -_MAX_WEIGHT <= weight <= _MAX_WEIGHT:  # NaN fails both
        raise InvalidArgument("default_weight", weight, f"{-_MAX_WEIGHT} to {_MAX_WEIGHT}")
    _check_labels(said.labels or {})
    _check_words(said.trigger_words or ())
    _check_text("description", said.description or "", _MAX_DESCRIPTION)
    _check_text("licence", said.licence or "", _MAX_NOTE)
    _check_text("base_model", said.base_model or "", _MAX_NOTE)


def check_change(change: AdapterChange) -> None:
    """Every field of an update; whether the versions exist is the catalog's to say."""
    check_said(change)
    aliases = change.aliases or {}
    if len(aliases) > _MAX_ALIASES:
        raise InvalidArgument("aliases", f"{len(aliases)} aliases", f"at most {_MAX_ALIASES}")
    for alias in aliases:
        check_alias(alias)


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > _MAX_LABELS:
        raise InvalidArgument("labels", f"{len(labels)} labels", f"at most {_MAX_LABELS}")
    for key, value in labels.items():
        _check_text("labels", key, MAX_TEXT, empty=False)
        _check_text(f"labels.{key}", value, MAX_TEXT)


def _check_words(words: Iterable[str]) -> None:
    given = tuple(words)
    if len(given) > MAX_WORDS:
        raise InvalidArgument("trigger_words", f"{len(given)} words", f"at most {MAX_WORDS}")
    for word in given:
        _check_text("trigger_words", word, MAX_TEXT, empty=False)


def _check_text(field: str, text: str, limit: int, *, empty: bool = True) -> None:
    """Text that is stored and shown: bounded, and without control characters or half characters."""
    long = len(text) > limit  # asked first: a message may hold millions of characters
    if long or not (text or empty) or any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in text):
        raise InvalidArgument(field, text, f"up to {limit} characters without control characters")
