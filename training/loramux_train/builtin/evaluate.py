"""Acceptance: is the base, and is each adapter, good enough to ship?

Takes an exported base, adapter files and the reference sheets; gives numbers with their bars as plain dictionaries.
Knows nothing of how the weights were made, and reads only what is shipped.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loramux_train.builtin.applied import apply, set_weights
from loramux_train.builtin.concepts import BACKGROUNDS, CONCEPTS, FLAT, HELD_OUT, STYLES, Concept, Style, caption
from loramux_train.builtin.drawing import Parts, draw
from loramux_train.builtin.likeness import distances, paired_distances
from loramux_train.builtin.references import read_references
from loramux_train.builtin.style_distance import StyleDistance

WEIGHTS = (0.0, 0.5, 1.0)
Result = dict[str, Any]


def classify(pictures: Tensor, references: Path) -> Tensor:
    """The index of the concept whose flat picture is nearest."""
    return distances(pictures, read_references(references, FLAT)).argmin(dim=1)


def judge_base(parts: Parts, references: Path, seeds: int = 4) -> Result:
    """Classify back every concept on white; compare grounds with the colours captions name."""
    captions = [caption(concept) for concept in CONCEPTS for _ in range(seeds)]
    truth = torch.arange(len(CONCEPTS)).repeat_interleave(seeds)
    found = classify(draw(parts, captions, list(range(seeds)) * len(CONCEPTS)), references)
    right = found == truth
    missed = {CONCEPTS[t].name: CONCEPTS[f].name for t, f in zip(truth[~right], found[~right], strict=True)}
    return {
        "prompts": len(CONCEPTS),
        "seeds": seeds,
        "top1": float(right.float().mean()),
        "top1_bar": ">=0.8",
        "missed": missed,
        "ground_error": ground_error(parts, CONCEPTS[::4]),
        "ground_error_bar": "<=0.15",
    }


def ground_error(parts: Parts, concepts: Sequence[Concept]) -> dict[str, float]:
    """Mean distance, in [0, 1], of the corners' colour from the colour the caption names."""
    errors: dict[str, float] = {}
    for name, colour in BACKGROUNDS.items():
        pictures = draw(parts, [caption(concept, name) for concept in concepts], list(range(len(concepts))))
        corners = torch.stack([pictures[:, :, y, x] for y in (0, 1, 62, 63) for x in (0, 1, 62, 63)]).median(0).values
        wanted = torch.tensor(colour) / 127.5 - 1
        errors[name] = float((corners - wanted).abs().mean() / 2)
    return errors


def judge_style(parts: Parts, file: Path, style: Style, references: Path, seeds: int = 2) -> Result:
    """Style distance to the style's real pictures of the same concepts, the ones style adapters are kept from."""
    every = torch.cat([read_references(references, each) for each in STYLES])
    measure = StyleDistance(parts.vae, every)
    apply(parts, file)
    captions = [caption(concept) for concept in HELD_OUT for _ in range(seeds)]
    real = read_references(references, style, HELD_OUT).repeat_interleave(seeds, dim=0)
    drawn = {weight: _draw_at(parts, weight, captions, list(range(seeds)) * len(HELD_OUT)) for weight in WEIGHTS}
    likeness = [float(paired_distances(drawn[weight], real).mean()) for weight in (0.0, 1.0)]
    return {
        "prompts": len(HELD_OUT),
        "seeds": seeds,
        **_fall({weight: measure(pictures, real) for weight, pictures in drawn.items()}),
        "likeness_fall": 1 - likeness[1] / likeness[0],
        **_weight_results(drawn),
    }


def judge_subject(parts: Parts, file: Path, subject: Tensor, trigger: str, references: Path, seeds: int = 8) -> Result:
    """Does the trigger word draw the subject, and do the other captions still draw what they say?"""
    apply(parts, file)
    captions = [caption(Concept(trigger, trigger))] * seeds
    drawn = {weight: _draw_at(parts, weight, captions, list(range(len(captions)))) for weight in WEIGHTS}
    apart = {weight: distances(pictures, subject).amin(dim=1) for weight, pictures in drawn.items()}
    set_weights(parts, 1.0)
    others = draw(parts, [caption(concept) for concept in CONCEPTS], [0] * len(CONCEPTS))
    kept = classify(others, references) == torch.arange(len(CONCEPTS))
    nearest = distances(drawn[1.0], read_references(references, FLAT)).amin(dim=1)
    return {
        **_fall(apart),
        "recognised": float((apart[1.0] < nearest).float().mean()),
        "recognised_bar": ">=0.8",
        "other_concepts_kept": float(kept.float().mean()),
        "other_concepts_kept_bar": ">=0.8",
        **_weight_results(drawn),
    }


def judge_treatment(parts: Parts, file: Path, treat: Callable[[Tensor], Tensor], seeds: int = 2) -> Result:
    """An adapter with an exact truth: the picture without it, treated. Measured by likeness."""
    apply(parts, file)
    captions = [caption(concept) for concept in HELD_OUT for _ in range(seeds)]
    drawn = {weight: _draw_at(parts, weight, captions, list(range(seeds)) * len(HELD_OUT)) for weight in WEIGHTS}
    real = treat(drawn[0.0])
    apart = {weight: paired_distances(pictures, real) for weight, pictures in drawn.items()}
    return {"prompts": len(HELD_OUT), "seeds": seeds, **_fall(apart), **_weight_results(drawn)}


def _fall(apart: dict[float, Tensor]) -> Result:
    """How much nearer the adapter brings the pictures, on average and how often."""
    off, on = apart[0.0], apart[1.0]
    return {
        "distance_off": float(off.mean()),
        "distance_on": float(on.mean()),
        "fall": float(1 - on.mean() / off.mean()),
        "fall_bar": ">=0.25",
        "wins": float((on < off).float().mean()),
        "wins_bar": ">=0.8",
        "distance_by_weight": {str(weight): float(values.mean()) for weight, values in apart.items()},
    }


def _draw_at(parts: Parts, weight: float, captions: list[str], seeds: list[int]) -> Tensor:
    set_weights(parts, weight)
    return draw(parts, captions, seeds)


def _weight_results(drawn: dict[float, Tensor]) -> Result:
    """How far each weight takes the pictures from the ones without the adapter: must grow with the weight."""
    change = {weight: float((pictures - drawn[0.0]).abs().mean() / 2) for weight, pictures in drawn.items()}
    values = list(change.values())
    return {
        "change_by_weight": {str(weight): value for weight, value in change.items()},
        "monotone": values == sorted(values),
        "largest_pixel_change": float((drawn[1.0] - drawn[0.0]).abs().max() * 127.5),
    }
