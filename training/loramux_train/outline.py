"""What a base is, without its weights: the configurations of its parts and where they came from. Reads nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
"""Names of the text encoders, in the order in which a UNet reads their embeddings."""

Config = dict[str, Any]
Family = Literal["sd1", "sd2", "sdxl"]


@dataclass(frozen=True, slots=True)
class Outline:
    """unet, vae, scheduler: configurations as diffusers has them; encoders: one, or two of SDXL, as transformers has
    them; pads: the token that each tokenizer pads with, where the source is a single file."""

    source: Path
    unet: Config
    vae: Config
    encoders: tuple[Config, ...]
    scheduler: Config
    pads: tuple[str, ...] = ()

    @property
    def family(self) -> Family:
        """The kind of Stable Diffusion by its architecture; small models count as the one they are built like."""
        if len(self.encoders) == 2:
            return "sdxl"
        return "sd2" if self.unet.get("use_linear_projection") else "sd1"

    @property
    def pixels_per_latent(self) -> int:
        """Pixels of a picture's edge for one of its latents'."""
        return 2 ** (len(self.vae.get("block_out_channels", (0,))) - 1)
