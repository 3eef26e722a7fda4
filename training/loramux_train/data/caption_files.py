"""Captions as people keep them: a text file beside each picture, or one list for a folder (imagefolder).

Takes the files of one folder; gives the captions of each picture by its name, and notes of what does not fit. Knows no
tags and no trigger word.
"""

import csv
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loramux_train.data.files import Place, nfc
from loramux_train.data.notes import Notes

Captions = tuple[str, ...]

MOST_BYTES = 1 << 20  # of a caption file: no caption, if it is longer


@dataclass(frozen=True, slots=True)
class CaptionRules:
    """What is taken for a caption: endings in order, the column of a list, whether each line is one."""

    endings: tuple[str, ...]
    column: str
    lines: Literal["one", "each"]


def captions_beside(place: Place, rules: CaptionRules, notes: Notes) -> dict[Path, Captions]:
    """The captions that files of a picture's name have, with or without its own ending: a.txt or a.png.txt."""
    found: dict[Path, Captions] = {}
    used: set[Path] = set()
    for name, picture in place.pictures.items():
        stem = os.path.splitext(name)[0]
        files = [
            path
            for ending in rules.endings
            for key in (name, stem)
            if (path := place.captions.get(ending, {}).get(key)) is not None
        ]
        used.update(files)
        if not files:
            continue
        if len(files) > 1:
            text = f"pictures with several caption files, of which the one in {files[0].suffix} is read"
            notes.tell("warning", "several_captions", text, picture)
        found[picture] = _from_file(files[0], rules, notes)
    orphans = [path for kind in place.captions.values() for path in kind.values() if path not in used]
    if orphans:
        notes.tell("warning", "caption_without_picture", "captions that no picture has the name of", *orphans)
    _tell_shared(place, found, notes)
    return found


def _tell_shared(place: Place, found: dict[Path, Captions], notes: Notes) -> None:
    stems: dict[str, list[Path]] = {}
    for name, picture in place.pictures.items():
        stems.setdefault(os.path.splitext(name)[0], []).append(picture)
    for pictures in stems.values():
        if len(pictures) > 1 and any(picture in found for picture in pictures):
            text = "pictures whose names differ in the ending only share one caption; both are used"
            notes.tell("warning", "same_stem", text, *pictures)


def _from_file(path: Path, rules: CaptionRules, notes: Notes) -> Captions:
    text = _text(path, notes)
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if not lines:
        if text or path.stat().st_size == 0:
            notes.tell("warning", "empty_caption", "caption files without a word, trained on without text", path)
        return ("",)
    if rules.lines == "each":
        return tuple(lines)
    if len(lines) > 1:
        text = 'caption files of several lines, joined to one caption (caption_lines = "each" makes each a caption)'
        notes.tell("warning", "several_lines", text, path)
    return (" ".join(lines),)


def _text(path: Path, notes: Notes) -> str:
    if path.stat().st_size > MOST_BYTES:
        notes.tell("error", "caption_unreadable", f"caption files of more than {MOST_BYTES} bytes", path)
        return ""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        notes.tell("error", "caption_unreadable", "caption files that are not UTF-8: save them as UTF-8", path)
        return ""


def captions_listed(place: Place, rules: CaptionRules, pictures: dict[str, Path], notes: Notes) -> dict[Path, Captions]:
    """What metadata.jsonl or metadata.csv says of pictures, by their paths below the folder of the list.

    pictures: every picture in and below that folder, by such a path in NFC.
    """
    found: dict[Path, Captions] = {}
    if len(place.lists) > 1:
        text = "folders with both metadata.jsonl and metadata.csv, of which the first is read"
        notes.tell("warning", "several_captions", text, place.folder)
    file = next((place.lists[name] for name in ("metadata.jsonl", "metadata.csv") if name in place.lists), None)
    if file is None:
        return found
    for number, row in _rows(file, notes):
        name, caption = row.get("file_name"), row.get(rules.column)
        at = f"{file} line {number}"
        if not isinstance(name, str):
            notes.tell("error", "list", f"{at}: file_name is {name!r}, expected the path of a picture")
            continue
        if rules.column not in row:
            has = ", ".join(sorted(map(str, row)))
            notes.tell("error", "list", f"{file}: no column {rules.column!r}; it has {has} (set caption_column)")
            return found
        if not isinstance(caption, str | None):
            notes.tell("error", "list", f"{at}: {rules.column} is {caption!r}, expected a text")
            continue
        picture = pictures.get(nfc(os.path.normpath(name)))
        if picture is None:
            notes.tell("error", "list", f"{at}: no picture {name!r} in {place.folder}")
        elif picture in found:
            notes.tell("error", "list", f"{at}: {name!r} is listed twice")
        elif caption is not None:
            found[picture] = (" ".join(caption.split()),)
        _tell_columns(file, set(row) - {"file_name", rules.column}, notes)
    return found


def _tell_columns(file: Path, others: set[str], notes: Notes) -> None:
    if others:
        notes.tell("info", "other_columns", f"columns that are not read: {', '.join(sorted(map(str, others)))}", file)


def _rows(file: Path, notes: Notes) -> list[tuple[int, dict[str, Any]]]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        notes.tell("error", "caption_unreadable", "caption files that are not UTF-8: save them as UTF-8", file)
        return []
    if file.suffix.lower() == ".csv":
        return list(enumerate(csv.DictReader(io.StringIO(text)), start=2))
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as fault:
            notes.tell("error", "list", f"{file} line {number}: no JSON: {fault}")
            continue
        if isinstance(row, dict):
            rows.append((number, row))
        else:
            notes.tell("error", "list", f"{file} line {number}: {row!r} is no JSON object")
    return rows
