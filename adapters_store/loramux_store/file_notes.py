"""What a file says of itself that people may want to read: trigger words, licence, base model.

Takes a container's metadata (strings from strangers); gives FileNotes, cut to size and without control characters. Of
the places where trigger words stand the first that has any counts. Knows no catalog.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from loramux_store.owner_words import MAX_TEXT, MAX_WORDS
from loramux_store.record import Embedding, FileNotes

__all__ = ["notes_of"]

_REPEATED = re.compile(r"\d+_(.+)\Z", re.DOTALL)
"""kohya's folders of pictures: how often each is shown, then what stands in their captions."""

_MOST_TEXTS = 10 * MAX_WORDS
"""Looked at in one place: metadata may hold half a million."""


def notes_of(metadata: Mapping[str, str], embeddings: Sequence[Embedding]) -> FileNotes:
    """Of a file's metadata, and of the embeddings in it."""
    words, source = _words(metadata, embeddings)
    model = metadata.get("ss_sd_model_name") or metadata.get("ss_base_model_version", "")
    model = model.replace("\\", "/").rpartition("/")[2]  # where it lay on the trainer's disk is nobody's business
    return FileNotes(words, source, _clean(metadata.get("modelspec.license", "")), _clean(model))


def _words(metadata: Mapping[str, str], embeddings: Sequence[Embedding]) -> tuple[tuple[str, ...], str]:
    places: tuple[tuple[str, Callable[[str], Iterable[str]]], ...] = (
        ("modelspec.trigger_phrase", lambda text: [text]),
        ("ss_dataset_dirs", _folders),
        ("ss_tag_frequency", _commonest),
    )
    for place, read in places:
        texts = itertools.islice(read(metadata.get(place, "")), _MOST_TEXTS)
        found = dict.fromkeys(word for text in texts if (word := _clean(text)))
        if found:
            return tuple(found)[:MAX_WORDS], place
    triggers = tuple(embedding.trigger for embedding in embeddings[:MAX_WORDS])
    return triggers, "embedding" if triggers else ""


def _folders(text: str) -> Iterable[str]:
    return (match[1] for folder in _object(text) if (match := _REPEATED.match(folder)))


def _commonest(text: str) -> Iterable[str]:
    """None where several are as common: of a style's captions, which all differ, none brings it out."""
    counts = Counter[str]()
    for tags in _object(text).values():
        if isinstance(tags, dict):
            for tag, count in cast("dict[str, object]", tags).items():
                counts[tag] += count if type(count) is int else 0
    best = max(counts.values(), default=0)
    tags = [tag for tag, count in counts.items() if count == best > 0]
    return tags if len(tags) == 1 else []


def _object(text: str) -> dict[str, Any]:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _clean(text: str) -> str:
    """One line; a text that is too long is cut."""
    plain = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text[: 4 * MAX_TEXT])
    return " ".join(plain.split())[:MAX_TEXT].rstrip()
