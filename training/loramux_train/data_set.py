"""What a run says of its data: for files' metadata, for the report, and to know it again when the run goes on.

Takes a survey; gives a frozen value. Knows no pixels and no loop.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loramux_train.data.captions import caption_to_measure, tag_counts, with_trigger
from loramux_train.data.order import Order
from loramux_train.data.picture import Picture
from loramux_train.data.survey import Survey
from loramux_train.output.facts import DataFacts, PictureFolder

_PROMPTS = 4


def _first(position: int) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class DataSet:
    """fingerprint: of all that batches depend on; pictures: the same of each, by name; held_out: pictures measured and
    not learnt; prompts: captions worth drawing; warnings: what the survey warns of; epoch_at: of a micro-step, both
    counted from 0."""

    facts: DataFacts
    fingerprint: str = ""
    pictures: Mapping[str, str] = field(default_factory=dict[str, str])
    held_out: int = 0
    prompts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    epoch_at: Callable[[int], int] = _first

    def known(self) -> dict[str, Any]:
        """By what checkpoints know it again."""
        return {"data_set": {"fingerprint": self.fingerprint, "pictures": dict(self.pictures)}}


def data_set(found: Survey, order: Order, cached: bool) -> DataSet:
    """cached: whether latents are encoded once only."""
    resolution = found.settings.resolution
    facts = DataFacts(
        folders=_folders(found),
        resolution=(resolution, resolution),
        buckets=Counter(picture.bucket for picture in found.pictures),
        bucketed=found.settings.buckets,
        batches_an_epoch=order.steps(0),
        latents_cached=cached,
    )
    warnings = tuple(note.line() for note in found.notes if note.weight == "warning")
    pictures = {str(picture.source.path): _identity(picture) for picture in (*found.pictures, *found.kept_out)}
    return DataSet(
        facts, found.fingerprint, pictures, len(found.kept_out), _prompts(found), warnings, lambda at: order.at(at)[0]
    )


def captions_of(found: Survey) -> tuple[str, ...]:
    """All that training may use, as they are before tags are shuffled."""
    own = (
        caption if picture.source.prior else with_trigger(caption, found.settings)
        for picture in found.pictures
        for caption in picture.source.captions
    )
    return tuple(dict.fromkeys(own))


def _identity(picture: Picture) -> str:
    source = picture.source
    said = [picture.content, picture.mask, source.captions, source.repeats, source.prior, picture.bucket]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _prompts(found: Survey) -> tuple[str, ...]:
    """Different captions, first of pictures that are not learnt, spread over the rest."""
    own = [p for p in (*found.kept_out, *found.pictures) if not p.source.prior]
    captions = list(dict.fromkeys(caption_to_measure(p.source.captions, found.settings) for p in own))
    count = min(_PROMPTS, len(captions))
    return tuple(captions[at * len(captions) // count] for at in range(count))


def _folders(found: Survey) -> tuple[PictureFolder, ...]:
    """By the last name alone, which is told apart by a number where two are the same."""
    settings = found.settings
    groups: dict[tuple[object, int, bool], list[Picture]] = {}
    for picture in found.pictures:
        source = picture.source
        groups.setdefault((source.path.parent, source.repeats, source.prior), []).append(picture)
    seen: Counter[str] = Counter()
    folders: list[PictureFolder] = []
    for (_, repeats, prior), pictures in groups.items():
        name = pictures[0].source.path.parent.resolve().name
        seen[name] += 1
        sources = [picture.source for picture in pictures]
        captions = [s.captions[0] if prior else caption_to_measure(s.captions, settings) for s in sources]
        shown = name if seen[name] == 1 else f"{name} ({seen[name]})"
        folders.append(PictureFolder(shown, len(pictures), repeats, tag_counts(captions, settings.separator), prior))
    return tuple(folders)
