"""Style distance: how unlike two pictures are drawn, whatever they show.

Takes pictures in [-1, 1] and the base's autoencoder; gives distances. Style is, as in style transfer, the mean and
deviation of every feature channel at every level of an encoder: here the shipped autoencoder's own, each statistic
scaled by how much it varies over the real pictures of all styles. Knows no captions and no denoiser.
"""

import torch
from diffusers import AutoencoderKL
from torch import Tensor


class StyleDistance:
    """A measure fixed by an autoencoder and a set of real pictures."""

    def __init__(self, vae: AutoencoderKL, real: Tensor) -> None:
        self._encoder = vae.encoder
        self._spread = self._statistics(real).std(dim=0) + 1e-6

    @torch.no_grad()
    def __call__(self, pictures: Tensor, references: Tensor) -> Tensor:
        """[n]: root mean square difference of the statistics of each pair."""
        apart = self._statistics(pictures) - self._statistics(references)
        return (apart / self._spread).square().mean(dim=1).sqrt()

    @torch.no_grad()
    def _statistics(self, pictures: Tensor) -> Tensor:
        features = self._encoder.conv_in(pictures)
        levels: list[Tensor] = []
        for block in (*self._encoder.down_blocks, self._encoder.mid_block):
            features = block(features)
            levels += [features.mean(dim=(2, 3)), features.std(dim=(2, 3))]
        return torch.cat(levels, dim=1)
