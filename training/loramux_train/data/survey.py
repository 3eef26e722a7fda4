"""A survey: every picture of a run read once before the run starts.

Takes DataSettings; gives the pictures with size, bucket and content hash, and notes of everything wrong with them. A
run starts with `require`, which refuses with all reasons at once. Knows no model.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from loramux_train.data.buckets import Buckets, Size, enlargement, make_buckets
from loramux_train.data.captions import CountTokens
from loramux_train.data.checks import tell_captions, tell_duplicates, tell_prior, tell_sizes
from loramux_train.data.finding import Source, find
from loramux_train.data.notes import DataError, Note, Notes
from loramux_train.data.picture import Picture
from loramux_train.data.reading import Looks, Unreadable, decoding, look
from loramux_train.data.validation import validation_contents
from loramux_train.data_settings import DataSettings

_MOST_THREADS = 8  # each may hold a decoded picture

Progress = Callable[[int, int], None]  # pictures read, pictures in all


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found. kept_out: the pictures for validation; pictures: all others, class pictures among them."""

    settings: DataSettings
    pictures: tuple[Picture, ...]
    kept_out: tuple[Picture, ...]
    notes: tuple[Note, ...]

    @property
    def errors(self) -> tuple[Note, ...]:
        """Why no run may start."""
        return tuple(note for note in self.notes if note.weight == "error")

    @property
    def lacks_class_pictures(self) -> bool:
        """Whether there are fewer than the settings ask for."""
        wanted = 0 if self.settings.prior is None else self.settings.prior.count
        return sum(picture.source.prior for picture in self.pictures) < wanted

    @property
    def fingerprint(self) -> str:
        """sha256 of all that batches depend on, held-out ones too: a run resumed with another one would not go on where
        it was, or not be measured as before."""
        chosen = self.settings.model_dump(mode="json", exclude={"folders", "prior", "cache", "skip_broken"})
        pictures, kept_out = (
            [(p.content, p.mask, p.source.captions, p.source.repeats, p.source.prior, p.bucket) for p in side]
            for side in (self.pictures, self.kept_out)
        )
        weight = None if self.settings.prior is None else self.settings.prior.weight
        return hashlib.sha256(json.dumps([chosen, pictures, kept_out, weight], sort_keys=True).encode()).hexdigest()

    def require(self) -> None:
        """DataError, with every reason, unless a run may start."""
        if self.errors:
            raise DataError(self.errors)


def survey(
    settings: DataSettings, count_tokens: CountTokens | None = None, progress: Progress = lambda done, of: None
) -> Survey:
    """Find and read everything. count_tokens: of the base's tokenizer; without it the fewest possible are told."""
    notes = Notes()
    sources = find(settings, notes)
    buckets = make_buckets(settings)
    pictures = [
        picture
        for source, read in _read_all(sources, progress)
        if (picture := _picture(source, read, buckets, settings.skip_broken, notes)) is not None
    ]
    out = validation_contents([p.content for p in pictures if not p.source.prior], settings)
    kept = tuple(p for p in pictures if p.source.prior or p.content not in out)
    kept_out = tuple(p for p in pictures if not p.source.prior and p.content in out)
    if sources and not any(not p.source.prior for p in kept):
        notes.tell("error", "nothing_to_train_on", "no picture is left to train on")
    tell_sizes(pictures, notes)
    tell_duplicates(pictures, notes)
    tell_captions(pictures, settings, count_tokens, notes)
    tell_prior(pictures, settings, notes)
    return Survey(settings, kept, kept_out, notes.collected())


@dataclass(frozen=True, slots=True)
class _Read:
    looks: Looks | None
    content: str
    mask: str
    fault: str | None


def _read_all(sources: list[Source], progress: Progress) -> Iterable[tuple[Source, _Read]]:
    """In order, side by side: Pillow decodes without the interpreter's lock."""
    with decoding(), ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as threads:
        for done, pair in enumerate(zip(sources, threads.map(_read, sources), strict=True), start=1):
            progress(done, len(sources))
            yield pair


def _read(source: Source) -> _Read:
    try:
        looks, content = look(source.path), digest(source.path)
    except Unreadable as unreadable:
        return _Read(None, "", "", str(unreadable))
    except OSError as failed:
        return _Read(None, "", "", failed.strerror or str(failed))
    if source.mask is None:
        return _Read(looks, content, "", None)
    try:
        mask = look(source.mask)
        if abs(mask.width * looks.height - mask.height * looks.width) > max(looks.width, looks.height):
            raise Unreadable(f"{mask.width}x{mask.height} px, the picture has {looks.width}x{looks.height}")
        return _Read(looks, content, digest(source.mask), None)
    except (Unreadable, OSError) as fault:
        return _Read(None, "", "", f"its mask {source.mask.name}: {fault}")


def digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _picture(source: Source, read: _Read, buckets: Buckets, skip: bool, notes: Notes) -> Picture | None:
    fault = read.fault
    if read.looks is not None:
        size: Size = read.looks.width, read.looks.height
        try:
            bucket = buckets.choose(size)
        except ValueError as too_small:
            fault = str(too_small)
        else:
            if read.looks.frames > 1:
                notes.tell("info", "frames", "pictures of several frames, of which the first is used", source.path)
            return Picture(source, read.content, read.mask, size, bucket, enlargement(size, bucket))
    ending = "left out, since skip_broken is true" if skip else "skip_broken = true goes on without it"
    notes.tell("warning" if skip else "error", "broken", f"{source.path}: {fault} ({ending})")
    return None
