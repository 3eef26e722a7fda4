"""The adapters that ship: recipes, files, and what is judged and drawn with them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from trained_factors import PROGRESS, facts

from loramux_store import InterpretOptions
from loramux_store.file_notes import notes_of
from loramux_store.verdict import judge
from loramux_train import base, plan
from loramux_train import config as settings_file
from loramux_train.adapter_settings import AdapterSettings
from loramux_train.builtin.adapters import BUILTIN_ADAPTERS, BuiltinAdapter
from loramux_train.builtin.applied import apply, factors_in, set_weights
from loramux_train.builtin.concepts import HELD_OUT
from loramux_train.builtin.drawing import Parts, load_parts, token_ids
from loramux_train.builtin.picture_folders import CHOOSING, FEW
from loramux_train.config import Config
from loramux_train.injection import Injected, inject
from loramux_train.outlook import outlook_of
from loramux_train.output.adapter_file import Form, save_adapter
from loramux_train.output.base_layout import layout_of
from loramux_train.target_settings import TargetSettings

BUILTIN = Path(__file__).parents[2] / "server/loramux_server/builtin"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


RUNS = Path(__file__).parents[2] / "training/runs"


def recipe_of(built: BuiltinAdapter) -> Config:
    return settings_file.read(RUNS / f"{built.name}.toml", (), base.native_resolution)


@pytest.fixture
def parts() -> Parts:
    return load_parts(BUILTIN / "base")


def _outputs(parts: Parts) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        context = parts.text_encoder(token_ids(parts.tokenizer, ["a red apple", "a zib"]))[0]
        return context, parts.unet(noise, torch.tensor([900, 100]), context).sample


def _injected(parts: Parts, rank: int, alpha: float) -> Injected:
    """Factors for every kind of target, 1x1 convolutions and the text encoder among them."""
    models: dict[str, Any] = {"unet": parts.unet, "text_encoder": parts.text_encoder}
    settings = AdapterSettings(rank=rank, alpha=alpha)
    planned = plan.make(models, TargetSettings(modules="attn-ff", text_encoder=True), settings, "adamw", 4)
    return inject(models, planned, settings, seed=0)


def test_fresh_adapter_is_an_exact_no_op(parts: Parts) -> None:
    before = _outputs(parts)
    _injected(parts, 4, 4)
    assert all(torch.equal(*pair) for pair in zip(before, _outputs(parts), strict=True))


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_what_is_judged_is_what_was_trained_and_what_diffusers_draws_with(
    form: Form, parts: Parts, tmp_path: Path
) -> None:
    layout = layout_of({"unet": parts.unet, "text_encoder": parts.text_encoder}, "builtin")
    injected = _injected(parts, 3, 1.5)
    with torch.no_grad():
        for name, value in injected.parameters.items():
            if name.endswith(".B"):
                value.normal_(std=0.05)
    file = save_adapter(injected.modules(), layout, facts(), PROGRESS, form, "fp32", tmp_path / "a.safetensors").path
    ours = load_parts(BUILTIN / "base")
    apply(ours, file)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(BUILTIN / "base", safety_checker=None, dtype=torch.float32)
    pipeline.load_lora_weights(file)
    theirs = Parts(ours.tokenizer, pipeline.text_encoder, pipeline.unet, ours.vae)
    drawn = [_outputs(each) for each in (ours, theirs, parts, load_parts(BUILTIN / "base"))]
    for mine, other, trained, unchanged in zip(*drawn, strict=True):
        assert (mine - other).abs().max() < 1e-4 and (mine - trained).abs().max() < 1e-4
        assert (mine - unchanged).abs().max() > 1e-2


@pytest.mark.parametrize("built", BUILTIN_ADAPTERS, ids=lambda built: built.name)
def test_weight_zero_is_bit_identical_to_no_adapter(built: BuiltinAdapter, parts: Parts) -> None:
    before = _outputs(parts)
    apply(parts, BUILTIN / built.folder / f"{built.name}.safetensors")
    assert not torch.equal(_outputs(parts)[1], before[1])
    set_weights(parts, 0.0)
    assert all(torch.equal(*pair) for pair in zip(before, _outputs(parts), strict=True))


@pytest.mark.parametrize("built", BUILTIN_ADAPTERS, ids=lambda built: built.name)
def test_shipped_adapters_say_what_they_are_and_hold_no_base(built: BuiltinAdapter, parts: Parts) -> None:
    file = BUILTIN / built.folder / f"{built.name}.safetensors"
    config = recipe_of(built)
    with safe_open(file, "pt") as opened:
        about, names = opened.metadata(), list(opened.keys())
    assert about["modelspec.title"] == config.about.title and about["modelspec.license"] == config.about.licence
    assert about.get("modelspec.trigger_phrase", "") == built.trigger == (config.data.trigger or "")
    assert about["ss_network_dim"] == str(config.adapter.rank)
    assert ("lora_adapter_metadata" in about) == (config.output.form == "diffusers")
    assert all(".lora_" in name or name.endswith(".alpha") for name in names)
    assert {factors.rank for factors in factors_in(file, parts)} == {config.adapter.rank}
    assert notes_of(about, ()).trigger_words[:1] == ((built.trigger,) if built.trigger else ())


@pytest.mark.parametrize("built", BUILTIN_ADAPTERS, ids=lambda built: built.name)
def test_shipped_adapters_tell_the_run_of_their_recipe_and_their_base(built: BuiltinAdapter) -> None:
    config = recipe_of(built)
    with safe_open(BUILTIN / built.folder / f"{built.name}.safetensors", "pt") as opened:
        about = opened.metadata()
    digest = base.digest(base.outline_of(BUILTIN / "base"))
    assert about["loramux.base_digest"] == about["ss_new_sd_model_hash"] == digest
    assert about["loramux.software"].startswith("loramux ")
    for key, value in (
        ("network_dim", config.adapter.rank),
        ("steps", config.run.steps),
        ("unet_lr", config.optimiser.rate),
        ("total_batch_size", config.data.batch_size),
        ("lr_scheduler", config.optimiser.schedule),
    ):
        assert about[f"ss_{key}"] == str(value)
    assert json.loads(about["ss_dataset_dirs"]).keys() == {built.name}


@pytest.mark.parametrize("built", BUILTIN_ADAPTERS, ids=lambda built: built.name)
def test_the_store_takes_shipped_adapters_with_their_words(built: BuiltinAdapter) -> None:
    layout = outlook_of(recipe_of(built)).layout
    verdict = judge(BUILTIN / built.folder / f"{built.name}.safetensors", InterpretOptions(), [layout])
    assert verdict.verdict == "accepted", verdict.reason


def test_shipped_ranks_differ_and_formats_are_mixed() -> None:
    recipes = [recipe_of(built) for built in BUILTIN_ADAPTERS]
    assert len({config.adapter.rank for config in recipes}) == len(BUILTIN_ADAPTERS)
    assert {config.output.form for config in recipes} == {"kohya", "diffusers"}
    assert any(config.adapter.alpha not in (None, config.adapter.rank) for config in recipes)


@pytest.mark.parametrize("file", sorted(RUNS.glob("*.toml")), ids=lambda file: file.stem)
def test_recipes_load_and_fit_the_built_in_base(file: Path) -> None:
    config = settings_file.read(file, (), base.native_resolution)
    assert config.base.path == "builtin" and config.data.resolution == 64
    outlook = outlook_of(config)
    assert outlook.plan.layers
    assert all(folder.path.parent == Path("out/train/pictures") for folder in config.data.folders)


def test_few_pictures_show_nothing_that_is_judged() -> None:
    assert len(FEW) == 32 and not set(FEW) & {*HELD_OUT, *CHOOSING} and len(CHOOSING) == 11
