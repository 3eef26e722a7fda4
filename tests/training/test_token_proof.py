"""New words learn what a few pictures show: on the built-in base, trained as users train and drawn by diffusers from
the files that the run left. Judged by which of the base's 64 reference pictures is nearest."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from loramux_train import base as bases
from loramux_train import config, session
from loramux_train.builtin.concepts import CONCEPTS, FLAT, WHITE
from loramux_train.builtin.drawing import draw, load_parts
from loramux_train.builtin.likeness import distances, variants
from loramux_train.builtin.pictures import place, to_array
from loramux_train.builtin.references import read_references
from loramux_train.builtin.subject import zib_pictures
from loramux_train.data_source import open_folders
from loramux_train.tokens.vectors import Tokens

BUILTIN = Path(__file__).parents[2] / "server/loramux_server/builtin"
SEEDS = list(range(6))
NAMES = [concept.name for concept in CONCEPTS]


@pytest.fixture(autouse=True)
def _one_precision_a_run() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(True)


def trained(folder: Path, pictures: Tensor, steps: int, tokens: dict[str, Any], **more: Any) -> config.Config:
    """A run on pictures [n, 3, 64, 64], each called "a <it>"."""
    shown = folder / "pictures"
    shown.mkdir()
    for number, picture in enumerate(pictures):
        pixels = ((picture.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
        Image.fromarray(pixels).save(shown / f"{number}.png")
        (shown / f"{number}.txt").write_text("a <it>")
    given: dict[str, Any] = {
        "data": {"folders": [str(shown)], "resolution": 64, "batch_size": 6, "caption_dropout": 0.0},
        "tokens": {"new": ["<it>"], **tokens},
        "run": {"steps": steps, "device": "cpu", "threads": 1, "save_every": 1000},
        "output": {"folder": str(folder / "run")},
        **more,
    }
    made = config.resolved(config.parse(given))
    session.run(made, open_folders)
    return made


def drawn(caption: str, vectors: Tensor | None, adapter: Path | None = None) -> Tensor:
    """[seeds, 3, 64, 64] by diffusers' pipeline, with its own readers of what was trained."""
    parts = load_parts(BUILTIN / "base")
    pipe: Any = StableDiffusionPipeline(
        vae=parts.vae, unet=parts.unet, text_encoder=parts.text_encoder, tokenizer=parts.tokenizer,
        scheduler=None, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    if vectors is not None:
        pipe.load_textual_inversion({"<it>": vectors})
    if adapter is not None:
        pipe.load_lora_weights(adapter)
    return draw(parts, [caption] * len(SEEDS), SEEDS)


def began(made: config.Config) -> Tensor:
    """The vectors before the first step."""
    base = bases.load(bases.outline_of(bases.find("builtin")), torch.float32, torch.device("cpu"))
    return Tokens(base, made.tokens, made.run.seed).parameters["tokens.text_encoder.0"].detach()


@pytest.mark.long
@pytest.mark.parametrize("concept", ["fox", "red apple"])
def test_a_word_alone_comes_to_mean_what_its_pictures_show(tmp_path: Path, concept: str) -> None:
    references, own = read_references(BUILTIN / "card/real", FLAT), NAMES.index(concept)
    shown = variants(references[own : own + 1])[0][[0, 4, 8, 13, 22, 26]]
    made = trained(tmp_path, shown, 60, {"alone": True})
    learnt = load_file(tmp_path / "run/embeddings/it.safetensors")["<it>"]
    before, after = (distances(drawn("a <it>", vectors), references) for vectors in (began(made), learnt))
    print(f"{concept}: mean distance {before[:, own].mean():.3f} -> {after[:, own].mean():.3f}; nearest before "
          f"{sum(row == own for row in before.argmin(1).tolist())} of 6, after "
          f"{sum(row == own for row in after.argmin(1).tolist())} of 6")  # fmt: skip
    assert not (before.argmin(1) == own).any()
    assert (after.argmin(1) == own).sum() >= 5
    assert after[:, own].mean() < before[:, own].mean() / 2


@pytest.mark.long
def test_a_word_with_an_adapter_learns_what_the_base_cannot_draw(tmp_path: Path) -> None:
    shown = torch.stack([torch.from_numpy(to_array(place(each, WHITE))) for each in zib_pictures()])
    made = trained(tmp_path, shown, 120, {"stop": 0.5}, adapter={"rank": 8}, targets={"modules": "attn-ff"},
                   optimiser={"rate": 3e-3})  # fmt: skip
    learnt = load_file(tmp_path / "run/embeddings/it.safetensors")["<it>"]
    adapter = tmp_path / "run/adapter.safetensors"
    start, word, both = (
        float(distances(drawn("a <it>", vectors, file), shown).amin(1).mean())
        for vectors, file in ((began(made), None), (learnt, None), (learnt, adapter))
    )
    print(f"zib: mean distance from the nearest pose {start:.3f} -> {word:.3f} by the word -> {both:.3f} with both")
    assert word < 0.95 * start and both < 0.65 * start
