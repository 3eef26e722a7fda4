"""The image and the mask of a request as the base sees them.

Takes a source's pixels and the base's VAE; gives what its pictures' first latents are drawn from. It knows no
sampler, no seed and no file format. It runs beside ticks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from loramux_server.requests import Job, Source


@dataclass(frozen=True, slots=True)
class Encoded:
    """The VAE's distribution of latents for one picture."""

    distribution: Any
    scaling_factor: float

    def sample(self, generator: torch.Generator) -> Tensor:
        """Latents [1, C, h, w] drawn with the picture's own generator."""
        return self.scaling_factor * self.distribution.sample(generator)


@dataclass(frozen=True, slots=True)
class ImageLatents:
    """What a picture starts from. mask: [1, 1, h, w], 1 where it is redrawn, None: everywhere.

    image: None where the pictures begin as pure noise and nothing of it is put back. rest: the image without what
    is redrawn, for a UNet that is made for inpainting.
    """

    image: Encoded | None
    mask: Tensor | None = None
    rest: Encoded | None = None


@torch.inference_mode()
def encode(vae: AutoencoderKL, job: Job, source: Source, *, inpainting: bool) -> ImageLatents:
    """Encodes the job's source, as diffusers' image-to-image and inpainting pipelines do."""
    shape = job.height, job.width
    image = _pixels(source.image, shape).float() / 255 * 2 - 1
    if source.mask is None:
        return ImageLatents(_encoded(vae, image))
    mask = _pixels(source.mask, shape).float()
    small = F.interpolate(mask, size=tuple(side // _scale(vae) for side in shape)).to(vae.device)
    if not inpainting:
        return ImageLatents(_encoded(vae, image), small)
    whole = None if job.sampling.strength == 1 else _encoded(vae, image)
    return ImageLatents(whole, small, _encoded(vae, image * (mask < 0.5)))


def _pixels(data: bytes, shape: tuple[int, int]) -> Tensor:
    """[1, channels, height, width] of bytes."""
    return torch.from_numpy(np.frombuffer(data, np.uint8).reshape(1, *shape, -1).transpose(0, 3, 1, 2).copy())


def _encoded(vae: AutoencoderKL, image: Tensor) -> Encoded:
    distribution = vae.encode(image.to(vae.device, vae.dtype), return_dict=False)[0]
    return Encoded(distribution, vae.config["scaling_factor"])


def _scale(vae: AutoencoderKL) -> int:
    return 2 ** (len(vae.config["block_out_channels"]) - 1)
