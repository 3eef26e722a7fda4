"""Latents kept on disk, by everything they depend on; a stale one cannot be found.

Takes the VAE as a function and its digest; gives the mean and deviation of a picture's latents, encoded when they are
first asked for, one picture at a time, so that no neighbour changes their last bits. An entry that is damaged is made
again. Knows no order and no captions.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loramux_train.data.buckets import Crop
from loramux_train.data.picture import Picture
from loramux_train.data.pixels import trained
from loramux_train.data.tensor_files import read_tensors, write_tensors
from loramux_train.data_settings import DataSettings

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Pixels [n, 3, H, W] in [-1, 1] to mean and standard deviation of their latents, [n, channels, h, w], unscaled."""

_READER = 1  # goes up when the same file would give other pixels or masks
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Latents:
    """mean, std: [channels, h, w], fp32, unscaled; mask: [1, h, w] in [0, 1], or None."""

    mean: Tensor
    std: Tensor
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class LatentCache:
    """Latents of pictures as the settings show them. folder: where; None keeps them in memory."""

    folder: Path | None
    vae_digest: str
    encode: Encode
    settings: DataSettings
    _kept: dict[str, Latents] = field(default_factory=dict[str, Latents], repr=False)

    def get(self, picture: Picture, crop: Crop, mirrored: bool) -> Latents:
        """From the cache, or encoded now and kept. Unreadable if the file cannot be read any more."""
        if not self.keeps:
            return self._encoded(picture, crop, mirrored)
        key = self._key(picture, crop, mirrored)
        if self.folder is None:
            if key not in self._kept:
                self._kept[key] = self._encoded(picture, crop, mirrored)
            return self._kept[key]
        path = self.folder / key[:2] / f"{key}.safetensors"
        found = read_tensors(path, key)
        if found is not None and {"mean", "std"} <= found.keys():
            return Latents(found["mean"].float(), found["std"].float(), found.get("mask"))
        made = self._encoded(picture, crop, mirrored)
        tensors = {"mean": made.mean.to(self._dtype), "std": made.std.to(self._dtype)}
        write_tensors(path, key, tensors if made.mask is None else {**tensors, "mask": made.mask})
        return made

    @property
    def keeps(self) -> bool:
        """Whether anything is kept: not where every use has another crop, since none would be found again."""
        return self.settings.crop == "centre"

    @property
    def _dtype(self) -> torch.dtype:
        return _DTYPES[self.settings.cache_dtype]

    def _key(self, picture: Picture, crop: Crop, mirrored: bool) -> str:
        depends: dict[str, Any] = {
            "reader": _READER,
            "content": picture.content,
            "mask": picture.mask or (self.settings.masks == "alpha" and not picture.source.prior),
            "ground": self.settings.ground,
            "crop": [crop.covering, crop.left, crop.top, crop.bucket],
            "mirrored": mirrored,
            "vae": self.vae_digest,
            "dtype": self.settings.cache_dtype,
        }
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()

    @torch.no_grad()
    def _encoded(self, picture: Picture, crop: Crop, mirrored: bool) -> Latents:
        shown = trained(picture, crop, mirrored, self.settings)
        mean, std = (part[0].float().cpu().contiguous() for part in self.encode(shown.pixels()[None]))
        if not (mean.isfinite().all() and std.isfinite().all()):
            raise ValueError(f"{picture.source.path}: the VAE gives numbers that are not finite; run it in fp32")
        # As they come back from the cache, so that the first use is like the next.
        mean, std = (part.to(self._dtype).float() for part in (mean, std))
        return Latents(mean, std, shown.weights(*mean.shape[1:]))


def encoder_of(vae: Any) -> Encode:
    """diffusers' AutoencoderKL as `Encode`, on its own device and in its own dtype."""

    def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
        like = next(vae.parameters())
        found = vae.encode(pixels.to(like.device, like.dtype)).latent_dist
        return found.mean, found.std

    return encode


def module_digest(module: nn.Module) -> str:
    """sha256 of a module's names, shapes, dtypes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
