"""Walking a folder: which files are pictures, captions, lists of captions, masks, and which are something else.

Takes a folder; gives one Place for each folder in it that holds files, in the order of names. Names are compared in
NFC, since one system writes an accented letter as one character and another as two. Reads no file.
"""

import os
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from loramux_train.data.notes import Notes
from loramux_train.data.reading import ENDINGS, UNREAD_ENDINGS

MASK_ENDING = "-masklabel"
MASK_FOLDERS = frozenset({"mask", "masks"})
LISTS = ("metadata.jsonl", "metadata.csv")
_NEVER = frozenset({"__macosx", "@eadir", "thumbs.db", "desktop.ini"})
_CACHES = frozenset({".npz", ".npy", ".safetensors", ".pt", ".toml", ".yaml", ".yml", ".py"})


@dataclass(slots=True)
class Place:
    """The files of one folder, each kind by its name in NFC; captions by ending, then by stem."""

    folder: Path
    pictures: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    captions: dict[str, dict[str, Path]] = field(default_factory=dict)
    lists: dict[str, Path] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)


def nfc(name: str) -> str:
    """The name in the form names are compared in."""
    return unicodedata.normalize("NFC", name)


def walk(root: Path, caption_endings: tuple[str, ...], notes: Notes) -> list[Place]:
    """Every folder in and below `root`, links followed once. Hidden files are counted and left alone."""
    places: list[Place] = []
    seen: set[str] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        _leave_hidden(Path(folder), below, notes)
        below.sort(key=nfc)
        place = Place(Path(folder))
        for name in sorted(names, key=nfc):
            _sort_in(place, name, caption_endings, notes)
        places.append(place)
    return _masks_told_apart(places)


def _leave_hidden(folder: Path, below: list[str], notes: Notes) -> None:
    hidden = [name for name in below if name.startswith(".") or name.lower() in _NEVER]
    for name in hidden:
        notes.tell("info", "hidden", "hidden files and folders are left alone", folder / name)
    below[:] = [name for name in below if name not in hidden]


def _sort_in(place: Place, name: str, caption_endings: tuple[str, ...], notes: Notes) -> None:
    path, key = place.folder / name, nfc(name)
    stem, ending = os.path.splitext(key)
    ending = ending.lower()
    if name.startswith(".") or name.lower() in _NEVER:
        notes.tell("info", "hidden", "hidden files and folders are left alone", path)
    elif key.lower() in LISTS:
        place.lists[key.lower()] = path
    elif ending in ENDINGS | UNREAD_ENDINGS:
        kind = place.masks if stem.endswith(MASK_ENDING) else place.pictures
        _put(kind, stem.removesuffix(MASK_ENDING) if kind is place.masks else key, path, notes)
    elif ending in caption_endings:
        _put(place.captions.setdefault(ending, {}), stem, path, notes)
    elif ending in _CACHES:
        notes.tell("info", "other_files", "files that are neither pictures nor captions are left alone", path)
    else:
        place.others.append(path)


def _put(kind: dict[str, Path], key: str, path: Path, notes: Notes) -> None:
    if key in kind and kind[key] != path:
        text = "names that differ only in how accented letters, or the ending's case, are written: rename one of them"
        notes.tell("error", "same_name", text, kind[key], path)
    kind[key] = path


def _masks_told_apart(places: list[Place]) -> list[Place]:
    """A folder called mask whose pictures are named as those beside it holds masks: they become their place's."""
    by_folder = {place.folder: place for place in places}
    kept: list[Place] = []
    for place in places:
        owner = by_folder.get(place.folder.parent)
        if place.folder.name.lower() in MASK_FOLDERS and owner is not None and owner.pictures:
            owner.masks |= {os.path.splitext(name)[0]: path for name, path in place.pictures.items()}
        else:
            kept.append(place)
    return kept
