"""Bases from single-file checkpoints in the original layout; and what is refused, part by part."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import original_checkpoint
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from loramux_server.engine import base_file, original_names
from loramux_server.engine.load_base import load_base
from loramux_server.engine.lora_layers import wrap
from loramux_server.errors import BadBase
from loramux_server.requests import GenerationRequest, Sampler
from loramux_store.layout import Layout, known_layout

CPU = torch.device("cpu")
Change = Callable[[dict[str, torch.Tensor]], object]
FAMILIES = {"tiny_base": "sd1", "tiny_sd2": "sd2", "tiny_sdxl": "sdxl"}
ASKED = GenerationRequest(
    "a red apple", negative_prompt="a dog", sampler=Sampler.DDIM, steps=3, guidance_scale=4.0, seed=7
)


@pytest.fixture
def write_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A tiny base as a checkpoint; the reader is given its blueprint, in which it then differs from a real one."""

    def write(base: Path, change: Change = lambda _: None) -> Path:
        pipe = DiffusionPipeline.from_pretrained(base)
        parts = [part for part in ("text_encoder", "text_encoder_2") if part in pipe.components]
        tensors = original_checkpoint.checkpoint(pipe.unet, pipe.vae, [pipe.components[part] for part in parts])
        change(tensors)
        pads = [pipe.components[part.replace("text_encoder", "tokenizer")].pad_token for part in parts]
        configs = {part: json.loads((base / part / "config.json").read_text()) for part in ("unet", "vae", *parts)}
        scheduler = json.loads((base / "scheduler/scheduler_config.json").read_text())
        blueprint = {**configs, "pads": pads, "scheduler": scheduler}
        monkeypatch.setattr(base_file, "_blueprint", lambda _: blueprint)
        tokenizer = CLIPTokenizer.from_pretrained
        monkeypatch.setattr(base_file, "tokenizer", lambda pad: tokenizer(base / "tokenizer", pad_token=pad))
        save_file(tensors, file := tmp_path / f"{base.name}.safetensors")
        return file

    return write


@pytest.mark.parametrize("base", FAMILIES)
def test_a_checkpoint_draws_what_its_folder_draws(
    base: str, write_file: Any, make_server: Any, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(base)
    file = write_file(folder, lambda tensors: tensors.update({"model_ema.decay": torch.tensor(1.0)}))
    one, other = make_server(folder), make_server(file)
    assert other.app.engine.base.family == FAMILIES[base] and other.app.engine.base.name == folder.name
    assert other.app.engine.layout.digest == one.app.engine.layout.digest
    assert np.array_equal(one.draw([ASKED])[0], other.draw([ASKED])[0])


def without(name: str) -> Change:
    """Takes every tensor away whose name contains it."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if name in key]:
            del tensors[key]

    return change


def grown(name: str) -> Change:
    """Doubles a tensor's second axis."""
    return lambda tensors: tensors.update({name: torch.cat([tensors[name]] * 2, dim=1)})


FIRST = "model.diffusion_model.input_blocks.0.0.weight"
FAULTS: list[tuple[Change, str]] = [
    (without("model.diffusion_model"), "lacks unet; expected a whole checkpoint in the original layout"),
    (without("first_stage_model"), "lacks vae; expected a whole checkpoint"),
    (without("conditioner"), "lacks text_encoder; expected that of Stable Diffusion 1, 2 or SDXL"),
    (without("embedders.0"), "text_encoder lacks the weights embeddings.position_embedding.weight"),
    (without("text_projection"), "text_encoder_2 lacks the weights text_projection.weight"),
    (without("middle_block.1.norm.bias"), "unet lacks the weights mid_block.attentions.0.norm.bias"),
    (without("label_emb"), "unet could not be loaded: "),
    (without("decoder.conv_out.bias"), "vae lacks the weights decoder.conv_out.bias"),
    (grown("first_stage_model.quant_conv.weight"), r"vae has quant_conv.weight of \[8, 16, 1, 1\], expected \[8, 8"),
    (grown(FIRST), "unet has 8 input channels, expected 4"),
    (
        lambda tensors: tensors.update({"model.diffusion_model.time_embed.cond_proj.weight": torch.zeros(64, 16)}),
        "unet has 1 weights more than its family's",
    ),
]


@pytest.mark.parametrize("change,said", FAULTS, ids=[said[:40] for _, said in FAULTS])
def test_a_checkpoint_that_is_not_whole_is_named(change: Any, said: str, write_file: Any, tiny_sdxl: Path) -> None:
    with pytest.raises(BadBase, match=said):
        load_base(write_file(tiny_sdxl, change), "tiny", CPU)


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("model.ckpt", "bad.safetensors", "refiner.safetensors")}
    files["model.ckpt"].write_bytes(b"\x80\x04\x95")
    files["bad.safetensors"].write_bytes(b"not one at all, is it")
    stems = ("model.diffusion_model.x", "first_stage_model.x", "conditioner.embedders.0.model.token_embedding.weight")
    save_file({name: torch.zeros(1) for name in stems}, files["refiner.safetensors"])
    for name, said in (
        ("model.ckpt", "is no .safetensors file; nothing is unpickled here"),
        ("bad.safetensors", "its header could not be loaded"),
        ("refiner.safetensors", "is the refiner of SDXL, expected the base"),
    ):
        with pytest.raises(BadBase, match=said):
            load_base(files[name], "tiny", CPU)


@pytest.mark.parametrize(
    "marks,metadata,prediction,side,more",
    [
        ((), {}, "v_prediction", 96, {}),
        ((), {"modelspec.prediction_type": "epsilon"}, "epsilon", 64, {}),
        ((), {"modelspec.predict_key": "v"}, "v_prediction", 96, {}),
        (("v_pred", "ztsnr"), {}, "v_prediction", 96, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ],
)
def test_a_checkpoint_may_say_what_it_predicts(
    marks: tuple[str, ...], metadata: Mapping[str, str], prediction: str, side: int, more: dict[str, Any]
) -> None:
    found = base_file._adjusted(base_file._blueprint("sd2"), marks, metadata)  # pyright: ignore[reportArgumentType]
    assert (found["scheduler"]["prediction_type"], found["unet"]["sample_size"]) == (prediction, side)
    assert more.items() <= found["scheduler"].items()
    xl = base_file._adjusted(base_file._blueprint("sdxl"), ["v_pred"], {})  # pyright: ignore[reportArgumentType]
    assert (xl["scheduler"]["prediction_type"], xl["unet"]["sample_size"]) == ("v_prediction", 128)


# parameters of the published models
SIZES = {
    "sd1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840
    },
}  # fmt: skip


@pytest.mark.parametrize("family", SIZES)
def test_blueprints_are_those_of_the_published_models(family: str) -> None:
    """Sizes, layouts, and every name and shape of a whole checkpoint, on the meta device."""
    blueprint = base_file._blueprint(family)  # pyright: ignore[reportArgumentType]
    kinds: dict[str, Any] = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**blueprint["unet"]), AutoencoderKL(**blueprint["vae"])
        encoders = {part: kind(CLIPTextConfig(**blueprint[part])) for part, kind in kinds.items() if part in blueprint}
        tensors = original_checkpoint.checkpoint(unet, vae, list(encoders.values()))
    models = {"unet": unet, "vae": vae, **encoders}
    assert {part: sum(p.numel() for p in model.parameters()) for part, model in models.items()} == SIZES[family]
    found = {"unet": original_names.unet(tensors, unet.config), "vae": original_names.vae(tensors, vae.config)}
    for index, part in enumerate(encoders):
        found[part] = original_names.text_encoder(tensors, index, len(encoders))
    for part, model in models.items():
        got = {name: found[part][name].shape for name in model.state_dict()}
        assert got == {name: tensor.shape for name, tensor in model.state_dict().items()}
    groups = wrap({part: model for part, model in models.items() if part != "vae"})
    layers = {path: layer.spec for group in groups.values() for path, layer in group.layers.items()}
    assert Layout(family, layers).digest == known_layout(family).digest


def test_the_tokenizer_of_checkpoints_is_clips() -> None:
    tokenizer = base_file.tokenizer("!")
    ids = tokenizer("a photo of a cat").input_ids
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407]  # as CLIP's own documentation has it
    assert (len(tokenizer), tokenizer.pad_token_id, tokenizer.model_max_length) == (49408, 0, 77)
    assert base_file.tokenizer("<|endoftext|>").pad_token_id == 49407
    text = "naïve café 日本語 😀"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
