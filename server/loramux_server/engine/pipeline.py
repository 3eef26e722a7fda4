"""The base as it lies in memory: its models, its tokenizers, its numbers.

Takes nothing; is what `load_base` gives and the rest of the engine reads. It knows no adapter, no request and no queue.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

INPAINTING_CHANNELS = 9  # latents, a mask, and latents of the image without what is redrawn


class Family(StrEnum):
    """Architectures of Stable Diffusion."""

    SD1 = "sd1"
    SD2 = "sd2"
    SDXL = "sdxl"


class Distilled(StrEnum):
    """What a base was distilled to draw in few steps with; NO where it was not.

    LCM takes the guidance scale as an input of the UNet, TURBO takes none.
    """

    NO = ""
    LCM = "lcm"
    TURBO = "turbo"


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """One of the base's text encoders; name: the component that adapters and layouts call it."""

    name: str
    tokenizer: CLIPTokenizer
    model: CLIPTextModel | CLIPTextModelWithProjection

    @property
    def width(self) -> int:
        """Of a token's embedding."""
        return self.model.config.hidden_size

    @property
    def layers(self) -> int:
        """Number of them."""
        return self.model.config.num_hidden_layers


@dataclass(frozen=True, slots=True)
class Base:
    """A resident Stable Diffusion model.

    name: what people call it; digest: hex sha256 over its files; zeros_for_no_text: whether an empty negative prompt is
    zeros instead of the encoding of no text.
    """

    name: str
    digest: str
    family: Family
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: tuple[TextEncoder, ...]
    scheduler_config: dict[str, Any]
    zeros_for_no_text: bool
    device: torch.device

    @property
    def models(self) -> Mapping[str, torch.nn.Module]:
        """What adapters act on, by component."""
        return {"unet": self.unet} | {encoder.name: encoder.model for encoder in self.text_encoders}

    @property
    def skips_last_layer(self) -> bool:
        """Whether the UNet reads the text encoders' layer before the last, without the final normalisation."""
        return self.family == Family.SDXL

    @property
    def guidance_width(self) -> int | None:
        """Width of the guidance scale's embedding, where it is an input of the UNet."""
        return self.unet.config["time_cond_proj_dim"]

    @property
    def distilled(self) -> Distilled:
        """Turbo models have no mark of their own: an Euler scheduler with trailing timesteps that predicts noise."""
        if self.guidance_width is not None:
            return Distilled.LCM
        config = self.scheduler_config
        euler = str(config.get("_class_name", "")).startswith("Euler")
        trailing = config.get("timestep_spacing") == "trailing"
        noise = config.get("prediction_type", "epsilon") == "epsilon"
        return Distilled.TURBO if euler and trailing and noise else Distilled.NO

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
        return self.unet.config["in_channels"] == INPAINTING_CHANNELS

    @property
    def min_side(self) -> int:
        """Smallest width and height, in pixels: one latent at the UNet's lowest level."""
        return self.latent_scale * 2 ** (len(self.unet.config["block_out_channels"]) - 1)

    @property
    def side(self) -> int:
        """Width and height that the base was trained at, in pixels."""
        return self.unet.config["sample_size"] * self.latent_scale
