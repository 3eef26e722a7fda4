"""What other programs wrote down beside an adapter's file: its trigger words, a weight, a description, its base.

Takes the path of a safetensors file; gives Beside: what a push may say for its owner, and warnings of files that cannot
be read, which are never a failure. All of it is text of strangers: bounded, without control characters, never a path.
Of several places the first that has any counts: NAME.civitai.info, NAME.json of the web interfaces, the model card of a
folder with one adapter. Does not know what the tensors are.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

__all__ = ["MAX_BYTES", "Beside", "read_sidecars"]

MAX_BYTES = 4 << 20
"""Of a file beside an adapter; those of Civitai have some 100 KiB."""

_MAX_HEADER = 16 << 20
_MAX_WORDS, _MAX_WORD, _MAX_DESCRIPTION, _MAX_BASE, _MAX_WEIGHT = 64, 256, 8192, 1024, 16.0
_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)\n---[ \t]*(\n|\Z)", re.DOTALL)
_INSTANCE_PROMPT = re.compile(r"^instance_prompt:(.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Beside:
    """Empty or None: nothing is said, or the file itself says it. sources: by field, the file it was taken from."""

    trigger_words: tuple[str, ...] = ()
    default_weight: float | None = None
    description: str = ""
    base_model: str = ""
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    warnings: tuple[str, ...] = ()

    @property
    def said(self) -> dict[str, Any]:
        """As options of an upload."""
        found = {
            "trigger_words": self.trigger_words,
            "default_weight": self.default_weight,
            "description": self.description,
            "base_model": self.base_model,
        }
        return {name: value for name, value in found.items() if value not in ((), None, "")}


def read_sidecars(file: Path) -> Beside:
    """What lies beside a file. What the file's own metadata says with more weight is left to it."""
    notes = _Notes()
    own = _metadata(file)
    for path, read in (
        (file.with_suffix(".civitai.info"), _civitai),
        (file.with_suffix(".json"), _web_ui),
        (file.parent / "README.md", _model_card),
    ):
        if read is _model_card and len(list(file.parent.glob("*.safetensors"))) != 1:
            continue
        if (text := notes.text_of(path)) is not None:
            read(notes, path.name, text)
    if own.get("modelspec.trigger_phrase", "").strip():
        notes.leave_out("trigger_words")
    if own.get("ss_sd_model_name") or own.get("ss_base_model_version"):
        notes.leave_out("base_model")
    return notes.beside()


class _Notes:
    """What was found so far: the first that says something counts."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, Any]] = {}
        self._warnings: list[str] = []

    def take(self, source: str, name: str, value: object) -> None:
        """Keeps a value that is none of the empty ones."""
        if value not in ((), None, ""):
            self._found.setdefault(name, (source, value))

    def warn(self, source: str, what: str) -> None:
        """One line; the file or the field is not used."""
        self._warnings.append(f"{source}: {what}: not used")

    def leave_out(self, name: str) -> None:
        """Forgets what was found."""
        self._found.pop(name, None)

    def text_of(self, path: Path) -> str | None:
        """A file's text; None where there is none that can be read."""
        try:
            with path.open("rb") as handle:
                data = handle.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.warn(path.name, error.strerror or "cannot be read")
            return None
        if len(data) > MAX_BYTES:
            self.warn(path.name, f"more than {MAX_BYTES} bytes")
            return None
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.warn(path.name, "no UTF-8")
            return None

    def object_of(self, source: str, text: str) -> dict[str, Any]:
        """A text as a JSON object; an empty one where it is none."""
        try:
            found: object = json.loads(text)
        except (ValueError, RecursionError) as error:
            self.warn(source, f"no JSON, {str(error)[:80]}")
            return {}
        if not isinstance(found, dict):
            self.warn(source, "no JSON object")
            return {}
        return cast("dict[str, Any]", found)

    def text(self, source: str, body: dict[str, Any], field: str, limit: int) -> str:
        """A field that is one text."""
        value = body.get(field)
        if value is None:
            return ""
        if not isinstance(value, str):
            self.warn(source, f"{field!r} is no text")
            return ""
        return _clean(value, limit)

    def beside(self) -> Beside:
        """All of it."""
        values = {name: value for name, (_, value) in self._found.items()}
        sources = {name: source for name, (source, _) in self._found.items()}
        return Beside(**values, sources=sources, warnings=tuple(self._warnings))


def _civitai(notes: _Notes, source: str, text: str) -> None:
    body = notes.object_of(source, text)
    words: object = body.get("trainedWords") or []
    if isinstance(words, list) and all(isinstance(word, str) for word in cast("list[object]", words)):
        notes.take(source, "trigger_words", tuple(_words(cast("list[str]", words)))[:_MAX_WORDS])
    else:
        notes.warn(source, "'trainedWords' is no list of texts")
    notes.take(source, "base_model", notes.text(source, body, "baseModel", _MAX_BASE))


def _web_ui(notes: _Notes, source: str, text: str) -> None:
    body = notes.object_of(source, text)
    notes.take(source, "trigger_words", tuple(_words([notes.text(source, body, "activation text", _MAX_WORD)])))
    notes.take(source, "description", notes.text(source, body, "description", _MAX_DESCRIPTION))
    notes.take(source, "base_model", notes.text(source, body, "sd version", _MAX_BASE))
    weight = body.get("preferred weight") or None  # 0 is what the web interfaces write where none was set
    if weight is None or _is_weight(weight):
        notes.take(source, "default_weight", None if weight is None else float(weight))
    else:
        notes.warn(source, f"'preferred weight' is no number from {-_MAX_WEIGHT:g} to {_MAX_WEIGHT:g}")


def _model_card(notes: _Notes, source: str, text: str) -> None:
    """The front matter that the Hugging Face hub reads."""
    front = _FRONT_MATTER.match(text.replace("\r\n", "\n"))
    if front and (found := _INSTANCE_PROMPT.search(front[1])):
        said = found[1].strip()
        quoted = len(said) > 1 and said[0] == said[-1] and said[0] in "'\""
        notes.take(source, "trigger_words", tuple(_words([said[1:-1] if quoted else said])))


def _is_weight(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -_MAX_WEIGHT <= value <= _MAX_WEIGHT  # NaN fails both


def _words(texts: list[str]) -> Iterator[str]:
    yield from dict.fromkeys(filter(None, (_clean(text, _MAX_WORD).strip(" ,") for text in texts)))


def _clean(text: str, limit: int) -> str:
    """One line; a text that is too long is cut."""
    plain = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text[: 4 * limit])
    return " ".join(plain.split())[:limit].rstrip()


def _metadata(file: Path) -> dict[str, str]:
    """Of a safetensors file; empty where that cannot be read: whoever takes the file says what is wrong with it."""
    try:
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            header: Any = json.loads(handle.read(size)) if size <= _MAX_HEADER else {}
        found = header.get("__metadata__", {})
        return {key: value for key, value in found.items() if isinstance(value, str)}
    except (OSError, ValueError, RecursionError, AttributeError):
        return {}
