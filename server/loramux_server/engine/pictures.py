"""From latents to an encoded picture, off the tick's thread.

Takes latents and the base's VAE; gives PNG bytes. It knows no request.
"""

import io

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor


@torch.inference_mode()
def decode(vae: AutoencoderKL, latents: Tensor) -> Image.Image:
    """One picture of latents [1, C, h, w], as diffusers' image processor makes it: to [0, 1], then rounded."""
    pixels = vae.decode(latents.to(vae.dtype) / vae.config["scaling_factor"], return_dict=False)[0]
    pixels = (pixels / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).float().cpu().numpy()
    return Image.fromarray((pixels * 255).round().astype("uint8"))


def to_png(image: Image.Image) -> bytes:
    """The picture as a PNG file, 8 bits a channel."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
