"""From a picture's file to the numbers a VAE takes.

Takes a picture, its crop and whether it is mirrored; gives RGB in [-1, 1] and the mask in [0, 1]. Knows no model.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from loramux_train.data.buckets import Crop
from loramux_train.data.picture import Picture
from loramux_train.data.reading import read
from loramux_train.data_settings import DataSettings


@dataclass(frozen=True, slots=True)
class Trained:
    """What is trained on: the cropped picture, and its mask (L) if it has one; white is trained on in full."""

    rgb: Image.Image
    mask: Image.Image | None

    def pixels(self) -> Tensor:
        """[3, h, w], fp32 in [-1, 1]."""
        return torch.from_numpy(np.asarray(self.rgb, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1.0)

    def weights(self, height: int, width: int) -> Tensor | None:
        """[1, height, width], fp32 in [0, 1]: the mean of the mask over the part each latent stands for."""
        if self.mask is None:
            return None
        small = self.mask.resize((width, height), Image.Resampling.BOX)
        return torch.from_numpy(np.asarray(small, dtype=np.float32)[None] / 255.0)


def trained(picture: Picture, crop: Crop, mirrored: bool, settings: DataSettings) -> Trained:
    """Read, resize, crop, and mirror. Unreadable if the file has become so since the survey."""
    shown = read(picture.source.path, settings.ground, crop.covering)
    rgb = _cropped(shown.rgb, crop, mirrored)
    mask = None
    if picture.source.mask is not None:
        whole = read(picture.source.mask, (0, 0, 0), crop.covering).rgb.convert("L")
        mask = _cropped(whole, crop, mirrored)
    elif settings.masks == "alpha" and not picture.source.prior and shown.opacity is not None:
        mask = _cropped(shown.opacity, crop, mirrored)
    return Trained(rgb, mask)


def _cropped(image: Image.Image, crop: Crop, mirrored: bool) -> Image.Image:
    small = image.resize(crop.bucket, Image.Resampling.LANCZOS, box=crop.box(image.size), reducing_gap=None)
    return ImageOps.mirror(small) if mirrored else small
