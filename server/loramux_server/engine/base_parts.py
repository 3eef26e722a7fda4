"""What every way of reading a base gives: its parts, not yet seen to belong together."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from loramux_server.engine.pipeline import TextEncoder
from loramux_server.errors import BadBase

T = TypeVar("T")

ENCODERS = ("text_encoder", "text_encoder_2")
TOKENIZERS = ("tokenizer", "tokenizer_2")
TEXT_TIME = "text_time"
"""The `addition_embed_type` of SDXL's UNet."""


@dataclass(frozen=True, slots=True)
class Dtypes:
    """models: of the UNet and the text encoders."""

    models: torch.dtype
    vae: torch.dtype


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a base on the CPU, with the hex sha256 over the files they came from."""

    digest: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: tuple[TextEncoder, ...]
    scheduler_config: dict[str, Any]
    zeros_for_no_text: bool


def named(source: object, part: str, load: Callable[[], T]) -> T:
    """What `load` gives; what goes wrong in it is the part's fault.

    Raises:
        BadBase: names the source and the part.
    """
    try:
        return load()
    except BadBase:
        raise
    except Exception as error:  # diffusers, transformers, tokenizers and safetensors raise a dozen kinds
        raise BadBase(f"base {source}: {part} could not be loaded: {_first_line(error)}") from error


def complete(source: object, part: str, missing: object) -> None:
    """Refuses weights that do not cover their model: what is missing would stay random.

    Raises:
        BadBase: names the part and some of what is missing.
    """
    keys = sorted(map(str, missing))  # pyright: ignore[reportArgumentType, reportUnknownArgumentType]
    if keys:
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise BadBase(f"base {source}: {part} lacks the weights {', '.join(keys[:3])}{more}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
