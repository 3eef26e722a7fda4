"""A base from a folder in diffusers layout.

Takes a folder; gives its outline and its models. Only safetensors are read.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from loramux_train.errors import BadBase
from loramux_train.outline import TEXT_ENCODERS, Config, Outline

_TOKENIZERS = ("tokenizer", "tokenizer_2")
_PLAIN = "diffusion_pytorch_model"


def outline(folder: Path) -> Outline:
    """What the folder holds.

    Raises:
        BadBase: where a configuration is missing or is not JSON; names it.
    """
    unet = _config(folder, "unet/config.json")
    names = TEXT_ENCODERS[: 2 if unet.get("addition_embed_type") == "text_time" else 1]
    return Outline(
        source=folder,
        unet=unet,
        vae=_config(folder, "vae/config.json"),
        encoders=tuple(_config(folder, f"{name}/config.json") for name in names),
        scheduler=_config(folder, "scheduler/scheduler_config.json"),
    )


def models(outline: Outline, dtype: torch.dtype, data: Path) -> tuple[Any, list[Any], list[Any]]:
    """UNet, text encoders and tokenizers.

    Raises:
        BadBase: where weights are missing or cannot be read; names the part.
    """
    folder, count = outline.source, len(outline.encoders)
    kinds: list[Any] = [CLIPTextModel, CLIPTextModelWithProjection]
    unet = _read(UNet2DConditionModel, folder, "unet", torch_dtype=dtype)
    encoders = [
        _read(kind, folder, name, dtype=dtype) for kind, name in zip(kinds, TEXT_ENCODERS[:count], strict=False)
    ]
    return unet, encoders, tokenizers(outline)


def tokenizers(outline: Outline) -> list[Any]:
    """One for each text encoder. BadBase where one cannot be read."""
    return [_tokenizer(outline.source, name) for name in _TOKENIZERS[: len(outline.encoders)]]


def vae(outline: Outline, dtype: torch.dtype) -> Any:
    """The VAE. BadBase where its weights cannot be read."""
    return _read(AutoencoderKL, outline.source, "vae", torch_dtype=dtype)


def files(outline: Outline) -> list[Path]:
    """Every file of the folder's parts, in the order of their names."""
    count = len(outline.encoders)
    parts = ("unet", "vae", *TEXT_ENCODERS[:count], *_TOKENIZERS[:count], "scheduler")
    return sorted(path for part in parts for path in (outline.source / part).rglob("*") if path.is_file())


def _config(folder: Path, name: str) -> Config:
    file = folder / name
    if not file.is_file():
        raise BadBase(
            f"base {folder} has no {name}; expected a folder in diffusers layout or a .safetensors checkpoint"
        )
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise BadBase(f"base {folder}: {name} is not JSON: {error}") from error


def _read(kind: Any, folder: Path, part: str, **dtype: Any) -> Any:
    try:
        model, info = kind.from_pretrained(
            folder / part,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            variant=_variant(folder / part),
            **dtype,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise BadBase(f"base {folder}: {part} cannot be read: {error}") from error
    if info["missing_keys"]:
        lacking = sorted(info["missing_keys"])
        raise BadBase(f"base {folder}: {part} lacks {len(lacking)} weights, the first is {lacking[0]}")
    return model


def _variant(folder: Path) -> str | None:
    """None where there are weights under their plain name, else the half-precision kind that is there."""
    stems = {file.stem for file in folder.glob("*.safetensors")}
    if any(stem in ("model", _PLAIN) or stem.startswith(("model-", f"{_PLAIN}-")) for stem in stems):
        return None
    return next((name for name in ("fp16", "bf16") if any(f".{name}" in stem for stem in stems)), None)


def _tokenizer(folder: Path, part: str) -> Any:
    load: Any = CLIPTokenizer.from_pretrained
    try:
        return load(folder / part, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BadBase(f"base {folder}: {part} cannot be read: {error}") from error
