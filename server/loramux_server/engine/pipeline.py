"""The base as loaded from a folder in diffusers layout: its models, its tokenizer, its numbers.

Takes a folder and a device; gives a `Base`. It knows no adapter, no request and no queue. Nothing is ever
fetched and nothing is unpickled: only local safetensors files are read.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from loramux_server.errors import BadBase

_COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_CHANNELS = 4  # of latents
_INPAINTING_CHANNELS = 9  # latents, a mask, and latents of the image without what is redrawn


@dataclass(frozen=True, slots=True)
class Base:
    """A resident Stable Diffusion 1.x model.

    name: what people call it; digest: hex sha256 over its files.
    """

    name: str
    digest: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]
    device: torch.device

    @property
    def latent_scale(self) -> int:
        """Pixels of a side that one latent covers."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def latent_channels(self) -> int:
        """Of latents."""
        return self.vae.config["latent_channels"]

    @property
    def inpainting(self) -> bool:
        """Whether the UNet sees a mask and the rest of an image beside the latents."""
        return self.unet.config["in_channels"] == _INPAINTING_CHANNELS

    @property
    def min_side(self) -> int:
        """Smallest width and height, in pixels: one latent at the UNet's lowest level."""
        return self.latent_scale * 2 ** (len(self.unet.config["block_out_channels"]) - 1)

    @property
    def side(self) -> int:
        """Width and height that the base was trained at, in pixels."""
        return self.unet.config["sample_size"] * self.latent_scale


def load_base(folder: Path, name: str, device: torch.device) -> Base:
    """Loads a Stable Diffusion 1.x folder: fp32 on the CPU; fp16 on a GPU with the VAE in fp32.

    Raises:
        BadBase: where the folder lacks a part or holds another architecture; names the part.
    """
    _check_parts(folder)
    disable_progress_bar()
    diffusers_logging.set_verbosity_error()  # else every picture's scheduler warns of settings it does not have
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    try:
        unet = UNet2DConditionModel.from_pretrained(
            folder / "unet", torch_dtype=dtype, use_safetensors=True, local_files_only=True
        )
        vae = AutoencoderKL.from_pretrained(
            folder / "vae", torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
        text_encoder = CLIPTextModel.from_pretrained(
            folder / "text_encoder", dtype=dtype, use_safetensors=True, local_files_only=True
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BadBase(f"base {folder} could not be loaded: {error}") from error
    _check_architecture(folder, unet, text_encoder)
    models: list[Any] = [unet, vae, text_encoder]  # diffusers' decorators hide the signature of `to`
    for model in models:
        model.to(device).eval().requires_grad_(False)
    if device.type == "cuda":  # channels last is what its convolutions are fastest in, and the kernels want
        models[0].to(memory_format=torch.channels_last)
    return Base(
        name=name,
        digest=_digest(folder),
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler_config=json.loads((folder / "scheduler" / "scheduler_config.json").read_text()),
        device=device,
    )


def _check_parts(folder: Path) -> None:
    if not (folder / "model_index.json").is_file():
        raise BadBase(f"base {folder} has no model_index.json; expected a folder in diffusers layout")
    missing = [part for part in _COMPONENTS if not (folder / part).is_dir()]
    if missing:
        raise BadBase(f"base {folder} lacks {', '.join(missing)}; expected {', '.join(_COMPONENTS)}")


def _check_architecture(folder: Path, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
    channels, context = unet.config["in_channels"], unet.config["cross_attention_dim"]
    if channels not in (_CHANNELS, _INPAINTING_CHANNELS):
        raise BadBase(
            f"base {folder} has a UNet of {channels} input channels, "
            f"expected {_CHANNELS}, or {_INPAINTING_CHANNELS} for inpainting"
        )
    if context != text_encoder.config.hidden_size:
        raise BadBase(
            f"base {folder} has a UNet for text of width {context} and a text encoder of width "
            f"{text_encoder.config.hidden_size}; expected the same (Stable Diffusion 1.x)"
        )


def _digest(folder: Path) -> str:
    """Hex sha256 over the name and sha256 of every file of the parts, in the order of their names."""
    total = hashlib.sha256()
    files = sorted(p for part in _COMPONENTS for p in (folder / part).rglob("*") if p.is_file())
    for file in files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()
