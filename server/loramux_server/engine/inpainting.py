"""How a picture begins from an image, and how what is not redrawn stays.

Takes what the VAE made of the image and the mask, a picture's scheduler and its generator; gives the first latents,
what the model sees beside them, and what is put back after every step. Noise is drawn in the order in which diffusers'
StableDiffusionImg2ImgPipeline and StableDiffusionInpaintPipeline draw it. It knows no model and no request.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loramux_server.engine.image_latents import ImageLatents


@dataclass(frozen=True, slots=True)
class Kept:
    """The part of an image that stays. Tensors are [1, C, h, w], the mask [1, 1, h, w] with 1 where it is redrawn."""

    image: Tensor
    noise: Tensor
    mask: Tensor

    def put_back(self, latents: Tensor, scheduler: Any, timestep: Tensor) -> Tensor:
        """Latents with the image where the mask is 0, as noisy as at the next `timestep` [1]; clean where [0]."""
        image = scheduler.add_noise(self.image, self.noise, timestep) if len(timestep) else self.image
        return (1 - self.mask) * image + self.mask * latents


@dataclass(frozen=True, slots=True)
class Beginning:
    """The first latents; what the model sees beside latents, and what is put back, where there is such a thing."""

    latents: Tensor
    beside: Tensor | None = None
    kept: Kept | None = None


def begin(
    start: ImageLatents,
    scheduler: Any,
    timestep: Tensor,
    *,
    pure: bool,
    shape: tuple[int, int, int, int],
    generator: torch.Generator,
) -> Beginning:
    """How a picture of latents `shape` begins at its first `timestep` [1].

    pure: as noise alone, which is what the inpainting pipeline does at strength 1.
    """
    image = None if start.image is None else start.image.sample(generator)
    noise = torch.randn(shape, generator=generator).to(scheduler.timesteps.device)
    if image is None or (pure and start.mask is not None):
        latents = noise * scheduler.init_noise_sigma
    else:
        latents = scheduler.add_noise(image, noise, timestep)
    if start.mask is None:
        return Beginning(latents)
    if start.rest is not None:
        return Beginning(latents, beside=torch.cat([start.mask, start.rest.sample(generator)], dim=1))
    torch.randn(shape, generator=generator)  # the pipeline draws the rest of the image here too, and then ignores it
    assert image is not None
    return Beginning(latents, kept=Kept(image, noise, start.mask))
