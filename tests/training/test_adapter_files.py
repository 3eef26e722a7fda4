"""What the trainer writes, diffusers reads: same modules, same change, nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from loramux_train.adapter import Adapter, Factors, Naming, load_adapter, save_adapter
from loramux_train.builtin.adapters import BUILTIN_ADAPTERS, BuiltinAdapter
from loramux_train.builtin.drawing import Parts, load_parts, token_ids
from loramux_train.builtin.lora import ATTENTION, FEED_FORWARD, TEXT, apply, extract, inject, set_weights, text_prefix

BUILTIN = Path(__file__).parents[2] / "server/loramux_server/builtin"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def parts() -> Parts:
    return load_parts(BUILTIN / "base")


def _outputs(parts: Parts) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        context = parts.text_encoder(token_ids(parts.tokenizer, ["a red apple", "a zib"]))[0]
        return context, parts.unet(noise, torch.tensor([900, 100]), context).sample


def _random_adapter(parts: Parts, rank: int, alpha: float) -> Adapter:
    """Factors for every kind of target, 1x1 convolutions and the text encoder among them."""
    torch.manual_seed(0)
    inject(parts.unet, rank, alpha, ATTENTION + FEED_FORWARD)
    inject(parts.text_encoder, rank, alpha, TEXT)
    unet, text = extract(parts.unet), extract(parts.text_encoder, text_prefix(parts.text_encoder))
    made = [
        {path: Factors(pair.down, 0.05 * torch.randn_like(pair.up), pair.alpha) for path, pair in part.items()}
        for part in (unet, text)
    ]
    return Adapter(*made)


def test_fresh_adapter_is_an_exact_no_op(parts: Parts) -> None:
    before = _outputs(parts)
    inject(parts.unet, 4, 4, ATTENTION + FEED_FORWARD)
    inject(parts.text_encoder, 4, 4, TEXT)
    assert all(torch.equal(*pair) for pair in zip(before, _outputs(parts), strict=True))


@pytest.mark.parametrize("naming", ["kohya", "peft"])
def test_diffusers_reads_the_same_change(naming: Naming, parts: Parts, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    save_adapter(file, _random_adapter(parts, 3, 1.5), naming, {"modelspec.title": "random"}, torch.float32)
    ours = load_parts(BUILTIN / "base")
    apply(ours, load_adapter(file))
    pipeline: Any = StableDiffusionPipeline.from_pretrained(BUILTIN / "base", safety_checker=None, dtype=torch.float32)
    pipeline.load_lora_weights(file)
    theirs = Parts(ours.tokenizer, pipeline.text_encoder, pipeline.unet, ours.vae)
    plain = _outputs(load_parts(BUILTIN / "base"))
    for mine, other, base in zip(_outputs(ours), _outputs(theirs), plain, strict=True):
        assert (mine - other).abs().max() < 1e-4
        assert (mine - base).abs().max() > 1e-2


@pytest.mark.parametrize("naming", ["kohya", "peft"])
def test_round_trip_keeps_every_delta(naming: Naming, parts: Parts, tmp_path: Path) -> None:
    adapter, file = _random_adapter(parts, 2, 4), tmp_path / "adapter.safetensors"
    save_adapter(file, adapter, naming, {}, torch.float32)
    back = load_adapter(file)
    for (_, mine), (_, read) in zip(adapter.parts(), back.parts(), strict=True):
        read = {path.replace(".", "_"): factors for path, factors in read.items()}
        assert {path.replace(".", "_") for path in mine} == read.keys()
        assert all(torch.equal(mine[path].delta(), read[path.replace(".", "_")].delta()) for path in mine)


@pytest.mark.parametrize("built", BUILTIN_ADAPTERS, ids=lambda built: built.name)
def test_weight_zero_is_bit_identical_to_no_adapter(built: BuiltinAdapter, parts: Parts) -> None:
    before = _outputs(parts)
    apply(parts, load_adapter(BUILTIN / built.folder / f"{built.name}.safetensors"))
    assert not torch.equal(_outputs(parts)[1], before[1])
    set_weights(parts, 0.0)
    assert all(torch.equal(*pair) for pair in zip(before, _outputs(parts), strict=True))


def test_adapters_that_do_nothing_or_diverged_are_not_written(tmp_path: Path) -> None:
    down, up = torch.ones(1, 2), torch.ones(3, 1)
    with pytest.raises(ValueError, match="change nothing"):
        save_adapter(tmp_path / "a", Adapter({"x": Factors(down, 0 * up, 1.0)}), "peft", {}, torch.float32)
    with pytest.raises(ValueError, match=r"unet\.x: not finite"):
        save_adapter(tmp_path / "a", Adapter({"x": Factors(down / 0, up, 1.0)}), "kohya", {}, torch.float32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("built", BUILTIN_ADAPTERS, ids=lambda built: built.name)
def test_shipped_adapters_say_what_they_are_and_hold_no_base(built: BuiltinAdapter) -> None:
    file = BUILTIN / built.folder / f"{built.name}.safetensors"
    with safe_open(file, "pt") as opened:
        about, names = opened.metadata(), list(opened.keys())
    assert about["modelspec.title"] == built.title and about["modelspec.license"] == built.licence
    assert about["ss_network_dim"] == str(built.recipe.rank)
    assert about.get("modelspec.trigger_phrase", "") == built.trigger
    assert ("lora_adapter_metadata" in about) == (built.naming == "peft")
    assert all(".lora_" in name or name.endswith(".alpha") for name in names)
    ranks = {f.rank for _, part in load_adapter(file).parts() for f in part.values()}
    assert ranks == {built.recipe.rank}


def test_shipped_ranks_differ_and_formats_are_mixed() -> None:
    assert len({built.recipe.rank for built in BUILTIN_ADAPTERS}) == len(BUILTIN_ADAPTERS)
    assert {built.naming for built in BUILTIN_ADAPTERS} == {"kohya", "peft"}
    assert any(built.recipe.alpha != built.recipe.rank for built in BUILTIN_ADAPTERS)
