"""A base from one .safetensors checkpoint in the original layout of Stable Diffusion.

Takes the file and the folder of blueprints; gives its outline, told by the names of its tensors, and its models, which
diffusers' own converters rename. Only safetensors are read.
"""

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from loramux_train.errors import BadBase
from loramux_train.outline import TEXT_ENCODERS, Config, Outline

_MARKS = {
    "conditioner.embedders.1.model.token_embedding.weight": "sdxl",
    "cond_stage_model.model.token_embedding.weight": "sd2",
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": "sd1",
}
_UNET = "model.diffusion_model."
_FIRST = f"{_UNET}input_blocks.0.0.weight"


def outline(file: Path, data: Path) -> Outline:
    """What the checkpoint is.

    Raises:
        BadBase: for a file that is no safetensors, or of none of the families.
    """
    if file.suffix != ".safetensors":
        raise BadBase(f"base {file} is no .safetensors file; nothing is unpickled here")
    names, said, channels = _header(file)
    family = next((family for mark, family in _MARKS.items() if mark in names), None)
    if family is None or channels is None:
        raise BadBase(f"base {file} is no whole checkpoint of Stable Diffusion 1, 2 or XL in the original layout")
    blueprint = _blueprint(data, family)
    return Outline(
        source=file,
        unet=blueprint["unet"] | {"in_channels": channels},
        vae=blueprint["vae"],
        encoders=tuple(blueprint[name] for name in TEXT_ENCODERS if name in blueprint),
        scheduler=_scheduler(blueprint["scheduler"], names, said),
        pads=tuple(blueprint["pads"]),
    )


def models(outline: Outline, dtype: torch.dtype, data: Path) -> tuple[Any, list[Any], list[Any]]:
    """UNet, text encoders and tokenizers.

    Raises:
        BadBase: where weights are missing or of another shape; names the part.
    """
    tensors = load_file(outline.source)
    unet = _unet(outline, tensors, dtype)
    encoders = [_encoder(outline, tensors, index, dtype) for index in range(len(outline.encoders))]
    return unet, encoders, tokenizers(outline, data)


def tokenizers(outline: Outline, data: Path) -> list[Any]:
    """One for each text encoder."""
    return [_tokenizer(data, pad) for pad in outline.pads]


def vae(outline: Outline, dtype: torch.dtype) -> Any:
    """The VAE. BadBase where weights are missing."""
    convert: Any = single_file_utils.convert_ldm_vae_checkpoint
    tensors = _under(load_file(outline.source), "first_stage_model.")
    return _filled(outline, "vae", AutoencoderKL, outline.vae, convert, tensors, dtype)


def _header(file: Path) -> tuple[set[str], dict[str, str], int | None]:
    try:
        with safe_open(file, "pt") as opened:
            names = set(opened.keys())
            channels = opened.get_slice(_FIRST).get_shape()[1] if _FIRST in names else None
            return names, opened.metadata() or {}, channels
    except (SafetensorError, OSError) as error:
        raise BadBase(f"base {file} cannot be read: {error}") from error


def _blueprint(data: Path, family: str) -> dict[str, Any]:
    return json.loads((data / "engine" / "blueprints" / f"{family}.json").read_text())


def _scheduler(config: Config, names: Iterable[str], said: Mapping[str, str]) -> Config:
    """With what the file says of itself: marks that trainers leave among the tensors, and metadata."""
    prediction = said.get("modelspec.prediction_type") or said.get("modelspec.predict_key") or ""
    if "v_pred" in names or prediction.startswith("v"):
        config = config | {"prediction_type": "v_prediction"}
    elif prediction == "epsilon":
        config = config | {"prediction_type": "epsilon"}
    return config | ({"rescale_betas_zero_snr": True} if "ztsnr" in names else {})


def _unet(outline: Outline, tensors: dict[str, Tensor], dtype: torch.dtype) -> Any:
    convert: Any = single_file_utils.convert_ldm_unet_checkpoint
    return _filled(outline, "unet", UNet2DConditionModel, outline.unet, convert, _under(tensors, _UNET), dtype)


def _filled(
    outline: Outline, part: str, kind: Any, config: Config, convert: Any, tensors: dict[str, Tensor], dtype: torch.dtype
) -> Any:
    """A model of diffusers with a checkpoint's tensors; every weight must be there, in its shape, and no other."""
    with torch.device("meta"):
        model: Any = kind.from_config(config)
    try:
        weights: dict[str, Tensor] = convert(tensors, config=model.config)
    except KeyError as error:
        raise BadBase(f"base {outline.source}: {part} lacks {error}") from error
    wanted = model.state_dict()
    wrong = [name for name, held in wanted.items() if name not in weights or weights[name].shape != held.shape]
    if wrong or len(weights) != len(wanted):
        first = f", the first is {wrong[0]}" if wrong else ""
        raise BadBase(
            f"base {outline.source}: {part} has {len(weights)} weights, expected {len(wanted)}; {len(wrong)} are "
            f"missing or of another shape{first}"
        )
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
    return model


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _encoder(outline: Outline, tensors: dict[str, Tensor], index: int, dtype: torch.dtype) -> Any:
    """diffusers reads a text encoder's configuration from a folder, so it is given one."""
    kind: Any = CLIPTextModelWithProjection if index else CLIPTextModel
    create: Any = single_file_utils.create_diffusers_clip_model_from_ldm
    with TemporaryDirectory() as folder:
        kind.config_class(**outline.encoders[index]).save_pretrained(folder)
        try:
            model = create(kind, tensors, config=folder, torch_dtype=dtype, local_files_only=True)
        except (KeyError, ValueError, RuntimeError) as error:
            raise BadBase(f"base {outline.source}: {TEXT_ENCODERS[index]} cannot be read: {error}") from error
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if empty:
        raise BadBase(f"base {outline.source}: {TEXT_ENCODERS[index]} lacks {len(empty)} weights, first {empty[0]}")
    return model


def _tokenizer(data: Path, pad: str) -> Any:
    """CLIP's own, which all bases share but for the token that they pad with."""
    lines = gzip.decompress((data / "engine" / "blueprints" / "clip_merges.txt.gz").read_bytes()).decode().splitlines()
    letters = _letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(line.split()) for line in lines)]
    tokens = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    merges: Any = [tuple(line.split()) for line in lines]
    return CLIPTokenizer(vocab=tokens, merges=merges, pad_token=pad, model_max_length=77)


def _letters() -> list[str]:
    """The 256 bytes as characters that can be seen, in the order of CLIP's vocabulary."""
    seen = [byte for low, high in (("!", "~"), ("¡", "¬"), ("®", "ÿ")) for byte in range(ord(low), ord(high) + 1)]
    return [*map(chr, seen), *(chr(256 + number) for number in range(256 - len(seen)))]
