"""A base to train beside: what it is, and its models.

Takes what a user wrote: `builtin`, a folder in diffusers layout, a .safetensors checkpoint, or a name in Hugging Face's
cache; gives its architecture without weights, and then the models. Nothing is downloaded and nothing unpickled.
"""

import hashlib
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from loramux_train import base_file, base_folder
from loramux_train.base_settings import BUILTIN
from loramux_train.errors import BadBase
from loramux_train.outline import TEXT_ENCODERS, Outline

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Base:
    """The frozen models of a base on one device; tokenizers and text_encoders: one, or SDXL's two."""

    outline: Outline
    unet: nn.Module
    text_encoders: tuple[nn.Module, ...]
    tokenizers: tuple[Any, ...]

    def parts(self) -> dict[str, nn.Module]:
        """What may be trained, by the names that adapter files use."""
        return {"unet": self.unet, **dict(zip(TEXT_ENCODERS, self.text_encoders, strict=False))}


def data_folder() -> Path:
    """The installed server's folder, found but not imported: the built-in base and blueprints are data in it.

    Raises:
        BadBase: where it is not installed.
    """
    found = find_spec("loramux_server")
    if found is None or found.origin is None:
        raise BadBase("the built-in base comes with the server: pip install 'loramux[server]'")
    return Path(found.origin).parent


def find(text: str) -> Path:
    """The folder or file that is meant.

    Raises:
        BadBase: where there is none.
    """
    if text == BUILTIN:
        return data_folder() / "builtin" / "base"
    path = Path(text).expanduser()
    if path.exists():
        return path
    if not _HUB_ID.fullmatch(text):
        raise BadBase(f"base {text} is no folder and no file, and no name in Hugging Face's cache (owner/name)")
    try:
        return Path(snapshot_download(text, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise BadBase(
            f"base {text} is no folder and no file, and Hugging Face's cache on this machine has no such model; "
            "nothing is downloaded"
        ) from error


def outline_of(path: Path) -> Outline:
    """What a base is, from its configuration or the names of its tensors; no weights are read.

    Raises:
        BadBase: where something is missing or of another architecture.
    """
    outline = base_file.outline(path, data_folder()) if path.is_file() else base_folder.outline(path)
    _check(outline)
    return outline


def native_resolution(text: str) -> int:
    """Pixels of a side that a base was trained at."""
    outline = outline_of(find(text))
    return outline.unet.get("sample_size", 64) * outline.pixels_per_latent


def meta_parts(outline: Outline) -> dict[str, nn.Module]:
    """The models that may be trained, without weights: shapes only, on the meta device."""
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(outline.unet)
        encoders = [text_encoder_kind(index)(CLIPTextConfig(**config)) for index, config in enumerate(outline.encoders)]
    return {"unet": unet, **dict(zip(TEXT_ENCODERS, encoders, strict=False))}


def text_encoder_kind(index: int) -> Any:
    """The class of SDXL's second text encoder has a projection that its UNet reads."""
    return CLIPTextModelWithProjection if index else CLIPTextModel


def load(outline: Outline, dtype: torch.dtype, device: torch.device) -> Base:
    """The models with their weights, frozen.

    Raises:
        BadBase: where weights are missing or of another shape.
    """
    read = base_file.models if outline.source.is_file() else base_folder.models
    unet, encoders, tokenizers = read(outline, dtype, data_folder())
    for model in (unet, *encoders):
        model.to(device).requires_grad_(False)
    return Base(outline, unet, tuple(encoders), tuple(tokenizers))


def load_vae(outline: Outline, dtype: torch.dtype, device: torch.device) -> Any:
    """The VAE, frozen. BadBase where its weights cannot be read."""
    read = base_file.vae if outline.source.is_file() else base_folder.vae
    return read(outline, dtype).to(device).eval().requires_grad_(False)


def digest(outline: Outline) -> str:
    """What adapters name their base by, as a server tells it: hex sha256 of the checkpoint; of a folder, over the name
    and sha256 of every file of its parts, in the order of their names."""
    if outline.source.is_file():
        return _sha256(outline.source)
    total = hashlib.sha256()
    for file in base_folder.files(outline):
        total.update(f"{file.relative_to(outline.source).as_posix()} {_sha256(file)}\n".encode())
    return total.hexdigest()


def name_of(text: str) -> str:
    """What people call a base: the last part of its path, or of its name in the cache."""
    path = Path(text)
    return path.stem if path.suffix == ".safetensors" else path.name


def tokenizers(outline: Outline) -> list[Any]:
    """One, or SDXL's two. BadBase where they cannot be read."""
    if outline.source.is_file():
        return base_file.tokenizers(outline, data_folder())
    return base_folder.tokenizers(outline)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check(outline: Outline) -> None:
    source, unet = outline.source, outline.unet
    if unet.get("in_channels", 4) != 4:
        raise BadBase(f"base {source}: unet has {unet['in_channels']} input channels, expected 4; train on the base "
                      "that is not for inpainting, the adapter fits both")  # fmt: skip
    added = unet.get("addition_embed_type")
    if added not in (None, "text_time"):
        raise BadBase(f"base {source}: unet has added embeddings of type {added}, expected none or text_time")
    if (added == "text_time") != (len(outline.encoders) == 2):
        raise BadBase(f"base {source}: {len(outline.encoders)} text encoders with added embeddings {added}")
    width = sum(config["hidden_size"] for config in outline.encoders)
    if unet["cross_attention_dim"] != width:
        raise BadBase(f"base {source}: unet reads text of width {unet['cross_attention_dim']}, its text encoders give "
                      f"{width}; expected the same")  # fmt: skip
