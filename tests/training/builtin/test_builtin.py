"""The built-in base is small, licensed, as good as its card says, and draws."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from loramux_train.builtin.acceptance import broken_bars
from loramux_train.builtin.adapters import BUILTIN_ADAPTERS
from loramux_train.builtin.concepts import CONCEPTS, FLAT, HELD_OUT, SEEN, caption
from loramux_train.builtin.drawing import GUIDANCE, STEPS, draw, load_parts, starting_noise
from loramux_train.builtin.evaluate import classify
from loramux_train.builtin.export import LIMIT, folder_size
from loramux_train.builtin.likeness import distances
from loramux_train.builtin.references import read_references

BUILTIN = Path(__file__).parents[3] / "server/loramux_server/builtin"
RESULTS: dict[str, Any] = json.loads((BUILTIN / "card" / "results.json").read_text())
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_base_fits_its_limit_and_card_its_own() -> None:
    assert folder_size(BUILTIN / "base") <= LIMIT
    assert folder_size(BUILTIN / "card") < 1_500_000
    assert RESULTS["base"]["bytes"] == folder_size(BUILTIN / "base")


def test_licences_of_every_source_are_kept() -> None:
    notice = (BUILTIN / "NOTICE").read_text()
    for words in (
        "fluent-emoji-flat",
        "fluent-emoji-high-contrast",
        "noto",
        "MIT License",
        "Apache",
        "open-clip-torch",
    ):
        assert words in notice
    assert (BUILTIN / "README.md").exists()


def test_concepts_are_named_once_and_split_fairly() -> None:
    assert len({concept.name for concept in CONCEPTS}) == len(CONCEPTS) == 64
    assert not set(SEEN) & set(HELD_OUT) and len(HELD_OUT) == 21
    assert caption(CONCEPTS[0], "blue") == "a red apple on a blue background"


def test_results_cover_everything_that_ships_and_hold() -> None:
    assert {"base", *(built.name for built in BUILTIN_ADAPTERS)} <= RESULTS.keys()
    assert list(broken_bars(RESULTS)) == []


def test_a_missed_bar_is_found() -> None:
    assert list(broken_bars({"base": {"top1": 0.5, "top1_bar": ">=0.8"}})) == ["base.top1 0.5 >=0.8"]


def test_references_recognise_themselves_and_nothing_else() -> None:
    flat = read_references(BUILTIN / "card" / "real", FLAT)
    nearest = distances(flat, flat)
    assert (nearest.argmin(dim=1) == torch.arange(len(CONCEPTS))).all()
    assert nearest.fill_diagonal_(9).min() > 0.05


def test_base_draws_what_captions_say() -> None:
    asked = [0, 19, 21, 44, 46, 51]
    pictures = draw(load_parts(BUILTIN / "base"), [caption(CONCEPTS[index]) for index in asked], [7] * len(asked))
    found = classify(pictures, BUILTIN / "card" / "real").tolist()
    assert sum(mine == wanted for mine, wanted in zip(found, asked, strict=True)) >= 5


def test_diffusers_draws_the_same_picture() -> None:
    pipeline: Any = StableDiffusionPipeline.from_pretrained(BUILTIN / "base", safety_checker=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "height": 64, "width": 64}
    theirs = pipeline("a red apple", latents=starting_noise(3), output_type="pt", **options).images
    ours = draw(load_parts(BUILTIN / "base"), ["a red apple"], [3]) / 2 + 0.5
    assert (ours - theirs).abs().max() < 1 / 255
