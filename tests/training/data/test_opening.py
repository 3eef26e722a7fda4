"""From settings to batches: what is wrong is said before anything slow, and what changed is noticed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from picture_folders import SCALING, encode, picture, settings, surveyed
from PIL import Image

from loramux_train.data.batches import Scaling, crop_of_use, is_mirrored
from loramux_train.data.latent_cache import encoder_of, module_digest
from loramux_train.data.notes import DataError
from loramux_train.data.opening import Vae, open_data, texts_folder
from loramux_train.data.pixels import trained

BUILTIN = Path(__file__).parents[3] / "server/loramux_server/builtin"
VAE = Vae(encode, "vae", SCALING)


def _draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
    return [Image.new("RGB", (64, 64), (seed % 256, 0, 0)) for seed in seeds]


def _refuse(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
    raise AssertionError("drawn for nothing")


def _prior(tmp_path: Path, **others: Any) -> dict[str, Any]:
    return {"folder": str(tmp_path / "class"), "prompt": "a cat", "count": 3, **others}


def test_class_pictures_are_drawn_and_used(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / "own" / f"{name}.png", caption="sks cat")
    chosen = settings(tmp_path / "own", prior=_prior(tmp_path), cache=str(tmp_path / "cache"), validation_share=0.5)
    data = open_data(chosen, lambda: VAE, _draw)
    assert len(list((tmp_path / "class").glob("*.png"))) == 3
    captions = {caption for position in range(4) for caption in data.batches.batch(position).captions}
    assert captions == {"sks cat", "a cat"}
    assert len(data.validation) == 1
    assert list((tmp_path / "cache" / "latents").rglob("*.safetensors"))
    open_data(chosen, lambda: VAE, _refuse)


def test_nothing_is_drawn_for_a_run_that_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "own" / "a.png")
    with pytest.raises(DataError, match="no caption"):
        open_data(settings(tmp_path / "own", prior=_prior(tmp_path)), lambda: VAE, _refuse)
    assert not (tmp_path / "class").exists()


def test_class_pictures_that_nobody_draws(tmp_path: Path) -> None:
    picture(tmp_path / "own" / "a.png", caption="sks cat")
    (tmp_path / "class").mkdir()
    with pytest.raises(DataError, match="class pictures are missing: draw them before"):
        open_data(settings(tmp_path / "own", prior=_prior(tmp_path)), lambda: VAE)


def test_texts_are_kept_beside_latents_unless_each_use_has_others(tmp_path: Path) -> None:
    chosen = settings(tmp_path, cache=str(tmp_path / "cache"))
    assert texts_folder(chosen) == tmp_path / "cache" / "texts"
    assert texts_folder(chosen.model_copy(update={"shuffle": True})) is None
    assert texts_folder(settings(tmp_path)) is None


def test_the_fingerprint_changes_with_what_batches_depend_on_alone(tmp_path: Path) -> None:
    picture(tmp_path / "own" / "a.png", caption="a cat", seed=1)
    first = surveyed(tmp_path / "own").fingerprint
    assert surveyed(tmp_path / "own", cache=str(tmp_path / "cache")).fingerprint == first
    (tmp_path / "own").rename(tmp_path / "moved")
    assert surveyed(tmp_path / "moved").fingerprint == first
    changed = [surveyed(tmp_path / "moved", **change).fingerprint for change in ({"seed": 1}, {"flip": True})]
    picture(tmp_path / "moved" / "a.png", caption="a dog", seed=1)
    changed.append(surveyed(tmp_path / "moved").fingerprint)
    picture(tmp_path / "moved" / "a.png", caption="a cat", seed=2)
    changed.append(surveyed(tmp_path / "moved").fingerprint)
    assert len({first, *changed}) == 5


def test_the_built_in_base_sees_the_pictures_themselves(tmp_path: Path) -> None:
    """Latents as the UNet takes them: of unit size, and the VAE decodes them to the pictures."""
    vae = AutoencoderKL.from_pretrained(BUILTIN / "base" / "vae").eval().float()
    with Image.open(BUILTIN / "card" / "real" / "noto.png") as sheet:
        for number in range(3):
            tile = sheet.convert("RGB").crop((number * 64, 0, number * 64 + 64, 64))
            tile.resize((256, 256), Image.Resampling.LANCZOS).save(tmp_path / f"{number}.png")
            (tmp_path / f"{number}.txt").write_text("a picture")
    scaling = Scaling(vae.config["scaling_factor"])
    data = open_data(settings(tmp_path, flip=True), lambda: Vae(encoder_of(vae), module_digest(vae), scaling))
    latents = data.batches.batch(0).latents
    assert latents.std().item() == pytest.approx(1.0, abs=0.3)
    with torch.no_grad():
        decoded = vae.decode(latents / scaling.factor).sample
    for use, found in zip(data.batches.order.uses(0), decoded, strict=True):
        chosen = data.survey.settings
        shown = trained(use.picture, crop_of_use(use, chosen), is_mirrored(use, chosen), chosen).pixels()
        assert (found - shown).square().mean().sqrt().item() / 2 < 0.06  # 24 dB; the VAE's own loss is 28 to 32
