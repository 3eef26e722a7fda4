"""A small picture of what a picture will be, without its decoder.

Takes the base's VAE once, then predictions of finished latents; gives small JPEG files. A straight map from the
channels of a latent to red, green and blue is fitted to what the VAE makes of random latents. It knows no request.
"""

import io

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

_SIDE = 16  # of the random latents that the map is fitted to
_QUALITY = 80


class Previews:
    """The map, fitted when it is first needed: one decoding of a small latent. Safe beside ticks."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self._vae = vae
        self._map: Tensor | None = None

    @torch.inference_mode()
    def jpeg(self, latents: Tensor) -> bytes:
        """One pixel a latent: JPEG of finished latents [1, C, h, w] as far as they can be foreseen.

        Raises:
            ValueError: where they are not finite, as at the first step of a schedule that begins as noise alone.
        """
        if not torch.isfinite(latents).all():
            raise ValueError("the latents as foreseen are not finite")
        if self._map is None:
            self._map = _fit(self._vae)
        features = _features(latents.float())
        pixels = ((features @ self._map).clamp(-1, 1) + 1) * 127.5
        picture = Image.fromarray(pixels.view(*latents.shape[2:], 3).round().to(torch.uint8).cpu().numpy())
        file = io.BytesIO()
        picture.save(file, format="JPEG", quality=_QUALITY)
        return file.getvalue()


def foreseen(sample: Tensor, prediction: Tensor, alpha: float, prediction_type: str) -> Tensor:
    """Finished latents as the model foresees them, from its input x_t [1, C, h, w] and its prediction.

    alpha: cumulative product of the noise schedule at t. Noise prediction: (x_t - sqrt(1 - alpha) e) / sqrt(alpha)
    (arXiv:2010.02502, equation 12); velocity: sqrt(alpha) x_t - sqrt(1 - alpha) v (arXiv:2202.00512, appendix D).
    """
    if prediction_type == "v_prediction":
        return alpha**0.5 * sample - (1 - alpha) ** 0.5 * prediction
    return (sample - (1 - alpha) ** 0.5 * prediction) / alpha**0.5


def _fit(vae: AutoencoderKL) -> Tensor:
    """[C + 1, 3]: least squares from the channels of a latent and 1 to the mean colour of its pixels."""
    generator = torch.Generator().manual_seed(0)
    # Smooth latents, as pictures have: noise of every size
    noise = [torch.randn(1, vae.config["latent_channels"], side, side, generator=generator) for side in (2, 4, 8, 16)]
    latents = sum(F.interpolate(each, (_SIDE, _SIDE), mode="bilinear") for each in noise) / 2
    assert isinstance(latents, Tensor)
    latents = latents.to(vae.device)
    pixels = vae.decode(latents.to(vae.dtype) / vae.config["scaling_factor"], return_dict=False)[0].float()
    colours = F.adaptive_avg_pool2d(pixels, (_SIDE, _SIDE))
    colours = colours.permute(0, 2, 3, 1).reshape(-1, 3)
    return torch.linalg.lstsq(_features(latents).cpu(), colours.cpu()).solution.to(latents.device)


def _features(latents: Tensor) -> Tensor:
    """[h * w, C + 1]: the channels of each latent, and 1."""
    channels = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    return torch.cat([channels, channels.new_ones(len(channels), 1)], dim=1)
