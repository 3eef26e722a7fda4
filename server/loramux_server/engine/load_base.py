"""From what an operator wrote to a resident base: a folder, a single file, or a model in Hugging Face's cache.

Takes a folder in diffusers layout, a .safetensors checkpoint or a hub id, and a device; gives a `Base`. It knows no
adapter, no request and no queue. Nothing is ever fetched and nothing is unpickled: only local safetensors are read.
"""

import re
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from transformers.utils.logging import disable_progress_bar

from loramux_server.engine.base_file import check_file, read_file
from loramux_server.engine.base_folder import check_folder, read_folder
from loramux_server.engine.base_parts import Dtypes, Parts
from loramux_server.engine.pipeline import INPAINTING_CHANNELS, Base, Family
from loramux_server.errors import BadBase

DTYPES = {
    "cpu": Dtypes(models=torch.float32, vae=torch.float32),
    # SDXL's VAE overflows in fp16, and decoding is a small part of a picture's time
    "cuda": Dtypes(models=torch.float16, vae=torch.float32),
}
"""Of the UNet and text encoders, and of the VAE, by device."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LATENT_CHANNELS = 4


def find_base(text: str) -> tuple[Path, str]:
    """The folder or file that an operator means, and its name: a path, or a hub id in Hugging Face's cache.

    Raises:
        BadBase: where there is neither.
    """
    path = Path(text).expanduser()
    if path.exists():
        return path, path.resolve().stem if path.is_file() else path.resolve().name
    if not _HUB_ID.fullmatch(text):
        raise BadBase(f"base {text} is no folder and no file, and no hub id (owner/name)")
    try:
        return Path(snapshot_download(text, local_files_only=True)), text
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise BadBase(
            f"base {text} is no folder and no file, and Hugging Face's cache on this machine has no such model; "
            "nothing is downloaded"
        ) from error


def check_base(text: str) -> None:
    """Whether there is a base where an operator says; its weights are not read.

    Raises:
        BadBase: where there is none, or a part is missing or of another architecture; names the part.
    """
    source, _ = find_base(text)
    if source.is_file():
        check_file(source)
    else:
        check_folder(source)


def load_base(source: Path, name: str, device: torch.device) -> Base:
    """Loads a folder or file with the dtypes that DTYPES gives the device.

    Raises:
        BadBase: where a part is missing, incomplete, or of another architecture; names the part.
    """
    disable_progress_bar()
    diffusers_logging.set_verbosity_error()  # else every picture's scheduler warns of settings it does not have
    dtypes = DTYPES[device.type]
    parts = read_file(source, dtypes) if source.is_file() else read_folder(source, dtypes)
    family = _family(source, parts)
    models: list[Any] = [parts.unet, parts.vae, *(encoder.model for encoder in parts.text_encoders)]
    for model in models:  # diffusers' decorators hide the signature of `to`
        model.to(device).eval().requires_grad_(False)
    if device.type == "cuda":  # channels last is what its convolutions are fastest in, and the kernels want
        models[0].to(memory_format=torch.channels_last)
    return Base(
        name=name,
        digest=parts.digest,
        family=family,
        unet=parts.unet,
        vae=parts.vae,
        text_encoders=parts.text_encoders,
        scheduler_config=parts.scheduler_config,
        zeros_for_no_text=parts.zeros_for_no_text,
        device=device,
    )


def _family(source: Path, parts: Parts) -> Family:
    """What the parts are, once they were seen to belong together."""
    _check_architecture(source, parts)
    if len(parts.text_encoders) == 2:
        return Family.SDXL
    return Family.SD2 if parts.unet.config["use_linear_projection"] else Family.SD1


def _check_architecture(source: Path, parts: Parts) -> None:
    config = parts.unet.config
    seen = config["in_channels"]
    inpainting = seen == INPAINTING_CHANNELS and len(parts.text_encoders) == 1
    if seen != _LATENT_CHANNELS and not inpainting:
        raise BadBase(
            f"base {source}: unet has {seen} input channels, expected {_LATENT_CHANNELS}, "
            f"or {INPAINTING_CHANNELS} for inpainting with Stable Diffusion 1 and 2"
        )
    if parts.vae.config["latent_channels"] != _LATENT_CHANNELS:
        channels = parts.vae.config["latent_channels"]
        raise BadBase(f"base {source}: vae has {channels} latent channels, expected {_LATENT_CHANNELS}")
    widths = [encoder.width for encoder in parts.text_encoders]
    if config["cross_attention_dim"] != sum(widths):
        raise BadBase(
            f"base {source}: unet reads text of width {config['cross_attention_dim']}, the text encoders give "
            f"{' + '.join(map(str, widths))}; expected the same"
        )
    if len(parts.text_encoders) == 2:
        _check_added(source, parts)
    for encoder in parts.text_encoders:
        words, rows = len(encoder.tokenizer), encoder.model.config.vocab_size
        if words > rows:
            raise BadBase(f"base {source}: {encoder.name} has {rows} token embeddings, its tokenizer {words} tokens")


def _check_added(source: Path, parts: Parts) -> None:
    """SDXL's UNet reads the second encoder's projection and six embedded numbers of size and crop."""
    config = parts.unet.config
    wanted = parts.text_encoders[1].model.config.projection_dim + 6 * config["addition_time_embed_dim"]
    if config["projection_class_embeddings_input_dim"] != wanted:
        raise BadBase(
            f"base {source}: unet is given {config['projection_class_embeddings_input_dim']} numbers beside the text, "
            f"expected {wanted} (the refiner of SDXL is no base)"
        )
