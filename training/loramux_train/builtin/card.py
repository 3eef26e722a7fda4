"""The model card's contact sheets.

Takes the built-in folder; gives small PNG sheets in `card/`: every concept, named grounds, each adapter
at weight 0, a half and 1. Knows no numbers: those are `acceptance`'s.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from loramux_train.builtin.adapters import BUILTIN_ADAPTERS, BuiltinAdapter
from loramux_train.builtin.applied import apply, set_weights
from loramux_train.builtin.concepts import BACKGROUNDS, CONCEPTS, HELD_OUT, caption
from loramux_train.builtin.drawing import Parts, draw, load_parts
from loramux_train.builtin.sheet import contact_sheet
from loramux_train.builtin.subject import TRIGGER

WEIGHTS = (0.0, 0.5, 1.0)
COLUMNS = 10


def write_card(out: Path) -> None:
    """Draw and write every sheet."""
    parts, card = load_parts(out / "base"), out / "card"
    names = [concept.name for concept in CONCEPTS]
    everything = draw(parts, [caption(concept) for concept in CONCEPTS], [0] * len(CONCEPTS))
    _save(contact_sheet(everything, 16, names), card / "concepts.png")
    grounds = [caption(concept, ground) for ground in BACKGROUNDS for concept in CONCEPTS[:: len(CONCEPTS) // COLUMNS]]
    per_row = len(grounds) // len(BACKGROUNDS)
    _save(contact_sheet(draw(parts, grounds, [1] * len(grounds)), per_row), card / "grounds.png")
    for built in BUILTIN_ADAPTERS:
        _save(_adapter_sheet(out, built), card / f"{built.name}.png")


def _adapter_sheet(out: Path, built: BuiltinAdapter) -> Image.Image:
    """One row a weight: concepts a style never saw, or the subject on every ground."""
    parts = load_parts(out / "base")
    apply(parts, out / built.folder / f"{built.name}.safetensors")
    captions = _subject_captions() if built.trigger else [caption(concept) for concept in HELD_OUT[::2][:COLUMNS]]
    rows = [_at_weight(parts, weight, captions) for weight in WEIGHTS]

    return contact_sheet(torch.cat(rows), len(captions))


def _at_weight(parts: Parts, weight: float, captions: Sequence[str]) -> torch.Tensor:
    set_weights(parts, weight)
    return draw(parts, list(captions), list(range(len(captions))))


def _subject_captions() -> list[str]:
    grounds = ["", *(f" on a {ground} background" for ground in BACKGROUNDS)]
    return [f"a {TRIGGER}{ground}" for ground in (grounds * COLUMNS)[: COLUMNS - 2]] + ["a red apple", "a robot"]


def _save(sheet: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(255, dither=Image.Dither.NONE).save(path, optimize=True)
