"""What the trainer makes of few pictures, measured and drawn for `docs/training-examples.md`.

Takes the built-in folder and the finished runs of `training/runs/few_*.toml`; gives numbers and contact sheets. Their
pictures show no held-out concept, and no setting was chosen by one.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from loramux_train.builtin.applied import set_weights
from loramux_train.builtin.concepts import BACKGROUNDS, HELD_OUT, INK, WHITE, Concept, caption
from loramux_train.builtin.drawing import Parts, draw, load_parts
from loramux_train.builtin.evaluate import Result, ground_error, judge_style, judge_subject
from loramux_train.builtin.pictures import place, to_array
from loramux_train.builtin.references import read_references
from loramux_train.builtin.sheet import contact_sheet
from loramux_train.builtin.subject import TRIGGER, zib_pictures

STYLES = ("few-style", "few-style-1")
SUBJECT = "few-subject"
_SUBJECT = Concept(TRIGGER, TRIGGER)
_COLUMNS = 12


def write_examples(out: Path, runs: Path, docs: Path) -> None:
    """`docs` gets `results.json`, `style.png` and `subject.png`."""
    real = out / "card" / "real"
    docs.mkdir(parents=True, exist_ok=True)
    results: Result = {}
    for name in STYLES:
        parts = load_parts(out / "base")
        judged = judge_style(parts, _file(runs, name), INK, real)
        results[name] = {"seconds": _seconds(runs / name), **judged}
        if name == STYLES[0]:
            captions = [caption(concept) for concept in HELD_OUT[:_COLUMNS]]
            pictures = [*_off_and_on(parts, captions), read_references(real, INK, HELD_OUT[:_COLUMNS])]
            _save(torch.cat(pictures), docs / "style.png")
    parts = load_parts(out / "base")
    poses = torch.from_numpy(np.stack([to_array(place(picture, WHITE)) for picture in zib_pictures()]))
    judged = judge_subject(parts, _file(runs, SUBJECT), poses, TRIGGER, real)
    set_weights(parts, 1.0)
    grounds = ground_error(parts, [_SUBJECT] * 8)
    results[SUBJECT] = {"seconds": _seconds(runs / SUBJECT), **judged, "ground_error": grounds}
    captions = [caption(_SUBJECT, ground) for ground in (None, *BACKGROUNDS) for _ in range(3)]
    _save(torch.cat(_off_and_on(parts, captions)), docs / "subject.png")
    (docs / "results.json").write_text(json.dumps(results, indent=2) + "\n")


def _file(runs: Path, name: str) -> Path:
    (file,) = (runs / name).glob("*.safetensors")
    return file


def _seconds(run: Path) -> float:
    """Of the whole run, as its log has it."""
    return json.loads((run / "log.jsonl").read_text().splitlines()[-1])["seconds"]


def _save(pictures: Tensor, file: Path) -> None:
    contact_sheet(pictures, _COLUMNS).quantize(255, dither=Image.Dither.NONE).save(file, optimize=True)


def _off_and_on(parts: Parts, captions: Sequence[str]) -> list[Tensor]:
    """Drawn with the applied adapter at weight 0 and 1."""
    drawn: list[Tensor] = []
    for weight in (0.0, 1.0):
        set_weights(parts, weight)
        drawn.append(draw(parts, list(captions), list(range(len(captions)))))
    return drawn
