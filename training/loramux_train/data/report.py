"""The report of a check: what a run would learn from, in numbers.

Takes a survey; gives frozen values for a table or JSON. Reads nothing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from loramux_train.data.captions import caption_to_measure, tag_counts
from loramux_train.data.notes import Note
from loramux_train.data.order import Order, Use
from loramux_train.data.picture import Picture
from loramux_train.data.survey import Survey

Epoch = Sequence[Sequence[Use]]


@dataclass(frozen=True, slots=True)
class FolderRow:
    """One folder with pictures. uses: of all its pictures in the first epoch."""

    folder: str
    kind: Literal["train", "class", "validation"]
    pictures: int
    repeats: int
    uses: int


@dataclass(frozen=True, slots=True)
class BucketRow:
    """One size, in pixels. uses and batches: in the first epoch, class pictures included."""

    width: int
    height: int
    pictures: int
    uses: int
    batches: int


@dataclass(frozen=True, slots=True)
class Told:
    """A note for programs: `code` is the word to ask for."""

    weight: Literal["error", "warning", "info"]
    code: str
    text: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """verdict: whether a run would start. Pictures by what becomes of them; captions by where they are from."""

    verdict: Literal["ready", "refused"]
    pictures: int
    class_pictures: int
    validation_pictures: int
    own_captions: int
    folder_captions: int
    batch_size: int
    steps_per_epoch: int
    folders: tuple[FolderRow, ...]
    buckets: tuple[BucketRow, ...]
    tags: dict[str, int]
    notes: tuple[Told, ...]


def report(survey: Survey, refusals: Sequence[Note] = ()) -> Report:
    """The survey in numbers. Tags are those of the pictures trained on, class pictures left out. refusals: why else a
    run would not start."""
    prior = [picture for picture in survey.pictures if picture.source.prior]
    own = [picture for picture in survey.pictures if not picture.source.prior]
    first = Order(survey.pictures, survey.settings).epoch(0) if own else []
    return Report(
        verdict="refused" if survey.errors or refusals else "ready",
        pictures=len(own),
        class_pictures=len(prior),
        validation_pictures=len(survey.kept_out),
        own_captions=sum(not picture.source.fallback for picture in own),
        folder_captions=sum(picture.source.fallback for picture in own),
        batch_size=survey.settings.batch_size,
        steps_per_epoch=len(first),
        folders=(
            *_folders(own, "train", first),
            *_folders(survey.kept_out, "validation", first),
            *_folders(prior, "class", first),
        ),
        buckets=_buckets(survey, first),
        tags=tag_frequency(survey),
        notes=tuple(map(_told, (*refusals, *survey.notes))),
    )


def tag_frequency(survey: Survey) -> dict[str, int]:
    """How many pictures that are trained on have each tag, the trigger word among them, the most frequent first."""
    settings = survey.settings
    captions = [caption_to_measure(p.source.captions, settings) for p in survey.pictures if not p.source.prior]
    return tag_counts(captions, settings.separator)


def _folders(
    pictures: Sequence[Picture], kind: Literal["train", "class", "validation"], epoch: Epoch
) -> list[FolderRow]:
    rows = Counter((picture.source.path.parent, picture.source.repeats) for picture in pictures)
    of_kind = set(pictures)
    used = [use.picture for batch in epoch for use in batch if use.picture in of_kind]
    uses = Counter((picture.source.path.parent, picture.source.repeats) for picture in used)
    return [
        FolderRow(str(folder), kind, count, repeats, uses[folder, repeats]) for (folder, repeats), count in rows.items()
    ]


def _buckets(survey: Survey, epoch: Epoch) -> tuple[BucketRow, ...]:
    pictures = Counter(picture.bucket for picture in survey.pictures)
    uses: Counter[tuple[int, int]] = Counter()
    batches: Counter[tuple[int, int]] = Counter()
    for batch in epoch:
        uses[batch[0].picture.bucket] += len(batch)
        batches[batch[0].picture.bucket] += 1
    return tuple(BucketRow(*size, pictures[size], uses[size], batches[size]) for size in sorted(pictures))


def _told(note: Note) -> Told:
    return Told(note.weight, note.code, note.text, tuple(map(str, note.paths)))
