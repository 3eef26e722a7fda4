"""Finding the pictures of a run: folders in any of the shapes that other trainers read.

Takes DataSettings; gives a Source for each picture, with captions, repeats and mask, and notes of everything that is
not as expected. Opens no picture.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from loramux_train.data.caption_files import CaptionRules, Captions, captions_beside, captions_listed
from loramux_train.data.elsewhere import say_where_pictures_are
from loramux_train.data.files import Place, nfc, walk
from loramux_train.data.notes import Notes
from loramux_train.data.templates import TEMPLATES
from loramux_train.data_settings import DataSettings, FolderSettings, PriorSettings

MOST_REPEATS_BY_NAME = 1000  # 2024_holiday is a year

_REPEATED = re.compile(r"(\d+)_(.*)", re.S)
_REGULARISATION = frozenset({"reg", "regs", "regularization", "regularisation", "class_images"})


@dataclass(frozen=True, slots=True)
class Source:
    """A picture to train on: the file, its captions (at least one), how often an epoch uses it, and its mask's file."""

    path: Path
    captions: Captions
    repeats: int
    prior: bool = False
    mask: Path | None = None
    fallback: bool = False  # the caption is the folder's, not its own


def find(settings: DataSettings, notes: Notes) -> list[Source]:
    """All pictures of all folders, class pictures last."""
    found: dict[str, Source] = {}
    for folder in settings.folders:
        for source in _in_folder(folder, settings, False, notes):
            if found.setdefault(os.path.realpath(source.path), source) is not source:
                text = "pictures found by two folders of the settings, used as the first says"
                notes.tell("warning", "found_twice", text, source.path)
    if settings.prior is None:
        return list(found.values())
    for source in _of_class(settings.prior, settings, notes):
        if found.setdefault(os.path.realpath(source.path), source) is not source:
            text = "pictures that are both trained on and class pictures: keep the folders apart"
            notes.tell("error", "prior_is_trained_on", text, source.path)
    return list(found.values())


def _of_class(prior: PriorSettings, settings: DataSettings, notes: Notes) -> list[Source]:
    """The class pictures there are; that more will be drawn is told."""
    none = not prior.folder.exists() or not any(prior.folder.iterdir())
    folder = FolderSettings(path=prior.folder, caption=prior.prompt)
    sources = [] if none and prior.count else _in_folder(folder, settings, True, notes)
    if len(sources) < prior.count:
        text = f"{prior.count - len(sources)} class pictures are drawn into {prior.folder} before the run"
        notes.tell("info", "prior_drawn", text)
    return sources


def _in_folder(folder: FolderSettings, settings: DataSettings, prior: bool, notes: Notes) -> list[Source]:
    if not folder.path.is_dir():
        what = "is a file, expected a folder" if folder.path.exists() else "does not exist"
        beside = sorted(entry.name for entry in folder.path.parent.glob("*/")) if folder.path.parent.is_dir() else []
        hint = f"; folders beside it: {', '.join(beside[:5])}" if beside else ""
        notes.tell("error", "no_folder", f"folder {folder.path} {what}{hint}")
        return []
    places = walk(folder.path, settings.caption_extensions, notes)
    if not any(place.pictures for place in places):
        hint = say_where_pictures_are(folder.path)
        notes.tell("error", "no_pictures", f"no pictures in {folder.path}, nor in the folders in it; {hint}")
        return []
    rules = CaptionRules(settings.caption_extensions, settings.caption_column, settings.caption_lines)
    captions = _captions(places, rules, notes)
    if not prior:
        _refuse_regularisation(folder.path, places, notes)
    sources = [source for place in places for source in _in_place(place, folder, settings, captions, prior, notes)]
    _tell_others(places, notes)
    return sources


def _captions(places: list[Place], rules: CaptionRules, notes: Notes) -> dict[Path, Captions]:
    """Of every picture that has any: a list's before a file's, an inner list's before an outer one's."""
    captions: dict[Path, Captions] = {}
    for place in places:
        captions |= captions_beside(place, rules, notes)
    for place in places:
        if not place.lists:
            continue
        listed = captions_listed(place, rules, _below(place.folder, places), notes)
        both = [picture for picture in listed if picture in captions and captions[picture] != listed[picture]]
        if both:
            text = "pictures with several captions, of files or lists; that of the innermost list is read"
            notes.tell("warning", "several_captions", text, *both)
        captions |= listed
    return captions


def _below(folder: Path, places: list[Place]) -> dict[str, Path]:
    return {
        nfc(os.path.relpath(picture, folder)): picture
        for place in places
        if place.folder.is_relative_to(folder)
        for picture in place.pictures.values()
    }


def _in_place(
    place: Place,
    folder: FolderSettings,
    settings: DataSettings,
    captions: dict[Path, Captions],
    prior: bool,
    notes: Notes,
) -> list[Source]:
    repeats, named = _by_name(place.folder, folder.path, notes)
    fallback = folder.caption if folder.caption is not None else named
    bare = [picture for picture in place.pictures.values() if picture not in captions]
    own = () if prior or folder.caption is not None else TEMPLATES.get(settings.templates, ())
    if bare and own:
        text = f"{len(bare)} pictures in {place.folder} have no caption and get sentences about {settings.trigger!r}"
        notes.tell("info", "templates", text)
    elif bare and fallback is None:
        _refuse_bare(bare, place, notes)
    elif bare and fallback is not None and not prior:
        _tell_fallback(bare, place, fallback, notes)
    masks = {} if prior else _masks(place, settings, notes)
    return [
        Source(
            path=picture,
            captions=captions.get(picture, own or (fallback or "",)),
            repeats=folder.repeats or repeats,
            prior=prior,
            mask=masks.get(os.path.splitext(name)[0]),
            fallback=picture not in captions,
        )
        for name, picture in place.pictures.items()
    ]


def _by_name(folder: Path, root: Path, notes: Notes) -> tuple[int, str | None]:
    """Repeats and class words of the nearest folder called N_words, the root included; (1, None) if none is."""
    inside = folder.relative_to(root).parts
    for depth in range(len(inside), -1, -1):
        at = root.resolve().joinpath(*inside[:depth])
        match = _REPEATED.fullmatch(at.name)
        if match and 1 <= int(match[1]) <= MOST_REPEATS_BY_NAME:
            return int(match[1]), match[2].strip() or None
        if match:
            text = f"folders whose number is not taken for repeats, expected 1 to {MOST_REPEATS_BY_NAME}: set repeats"
            notes.tell("warning", "repeats", text, at)
    return 1, None


def _refuse_bare(bare: list[Path], place: Place, notes: Notes) -> None:
    stems = {os.path.splitext(nfc(picture.name))[0] for picture in bare}
    endings = {other.suffix for other in place.others if os.path.splitext(nfc(other.name))[0] in stems}
    hint = "write NAME.txt beside each, or give the folder one caption for all"
    if endings:
        hint = f"files of the same names end in {', '.join(sorted(endings))}: add it to caption_extensions"
    text = f"{len(bare)} of {len(place.pictures)} pictures in {place.folder} have no caption; {hint}"
    notes.tell("error", "no_caption", text, *bare)


def _tell_fallback(bare: list[Path], place: Place, fallback: str, notes: Notes) -> None:
    if len(bare) < len(place.pictures):
        text = f"{len(bare)} of {len(place.pictures)} pictures in {place.folder} have no caption and get {fallback!r}"
        notes.tell("warning", "no_caption", text, *bare)
    else:
        text = f"all {len(bare)} pictures in {place.folder} get the folder's caption, {fallback!r}"
        notes.tell("info", "folder_caption", text)


def _masks(place: Place, settings: DataSettings, notes: Notes) -> dict[str, Path]:
    stems = {os.path.splitext(name)[0] for name in place.pictures}
    strangers = [path for stem, path in place.masks.items() if stem not in stems]
    if strangers:
        notes.tell("error", "mask_without_picture", "masks that no picture has the name of", *strangers)
    if settings.masks != "files":
        if place.masks:
            text = f'masks that are not used, since masks = "{settings.masks}"; "files" uses them'
            notes.tell("warning", "masks_unused", text, *place.masks.values())
        return {}
    without = [path for name, path in place.pictures.items() if os.path.splitext(name)[0] not in place.masks]
    if without:
        notes.tell("warning", "no_mask", "pictures without a mask, trained on as a whole", *without)
    return place.masks


def _refuse_regularisation(root: Path, places: list[Place], notes: Notes) -> None:
    for place in places:
        inside = place.folder.relative_to(root).parts
        if place.pictures and any(part.lower() in _REGULARISATION for part in inside):
            text = (
                "class pictures, by the folder's name, inside a folder to train on: name the subject's own folder, and "
                "this one as prior.folder"
            )
            notes.tell("error", "prior_is_trained_on", text, place.folder)


def _tell_others(places: list[Place], notes: Notes) -> None:
    others = [path for place in places for path in place.others]
    if others:
        text = "files that are neither pictures nor captions are left alone"
        notes.tell("info", "other_files", text, *others)
