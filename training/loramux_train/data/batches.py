"""Batches of captioned latents, as the loop takes them: a pure function of the position.

Takes a survey and a latent cache; gives `Batch`. Every random choice is drawn from numbers that name its place (seed,
epoch, picture, repeat, or position), never from a stream, so that a resumed run is the unbroken one. Knows no loop.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from loramux_train.batch import Batch, Sizes
from loramux_train.data.buckets import Crop, crop
from loramux_train.data.captions import caption_of_use, caption_to_measure
from loramux_train.data.latent_cache import LatentCache, Latents
from loramux_train.data.notes import DataError, Note
from loramux_train.data.order import CROP, NOISE, USE, Order, Use, generator, of_content
from loramux_train.data.picture import Picture
from loramux_train.data.survey import Survey
from loramux_train.data_settings import DataSettings


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a UNet takes latents: (latents - shift) * factor; a VAE's configuration has both."""

    factor: float
    shift: float = 0.0


class FolderBatches:
    """Batches for training. DataError if the survey has errors, or if class pictures are still to be drawn."""

    def __init__(self, survey: Survey, cache: LatentCache, scaling: Scaling) -> None:
        survey.require()
        if survey.lacks_class_pictures:
            text = "class pictures are missing: draw them before the run, or set prior.count to 0"
            raise DataError((Note("error", "prior_missing", text),))
        self._settings = survey.settings
        self._cache = cache
        self._scaling = scaling
        self.order = Order(survey.pictures, survey.settings)

    def batch(self, position: int) -> Batch:
        """The batch of a micro-step, counted from 0. ValueError below 0; Unreadable if a file changed under the run."""
        uses = self.order.uses(position)
        crops = [crop_of_use(use, self._settings) for use in uses]
        mirrored = [is_mirrored(use, self._settings) for use in uses]
        latents = [self._cache.get(u.picture, c, m) for u, c, m in zip(uses, crops, mirrored, strict=True)]
        noise = generator(self._settings.seed, NOISE, position)
        prior = self._settings.prior
        return Batch(
            latents=sampled(latents, noise, self._scaling),
            captions=tuple(caption_at(use, self._settings) for use in uses),
            weights=torch.tensor([prior.weight if prior and use.picture.source.prior else 1.0 for use in uses]),
            masks=masks_of(latents, self._settings),
            sizes=tuple(sizes_of(u.picture, c, m) for u, c, m in zip(uses, crops, mirrored, strict=True)),
        )

    def fill(self, epoch: int = 0) -> Iterator[int]:
        """Encode every picture of an epoch's uses, mirrored too if the run mirrors; yields how many are done.

        Nothing where nothing is kept: with random crops.
        """
        if not self._cache.keeps:
            return
        seen: set[tuple[str, Crop]] = set()
        for use in (use for batch in self.order.epoch(epoch) for use in batch):
            cut = crop_of_use(use, self._settings)
            if (use.picture.content, cut) not in seen:
                seen.add((use.picture.content, cut))
                for mirrored in (False, True) if self._settings.flip else (False,):
                    self._cache.get(use.picture, cut, mirrored)
                yield len(seen)


class ValidationBatches:
    """Batches to measure the loss on: each picture kept out once, in the middle, never mirrored, caption as it is.

    The latents are sampled with the same noise at every time. Positions beyond the last raise IndexError.
    """

    def __init__(self, survey: Survey, cache: LatentCache, scaling: Scaling) -> None:
        survey.require()
        self._settings = survey.settings
        self._cache = cache
        self._scaling = scaling
        self._batches = _in_buckets(survey.kept_out, survey.settings.batch_size)

    def __len__(self) -> int:
        return len(self._batches)

    def batch(self, position: int) -> Batch:
        """One of `len(self)` batches."""
        if not 0 <= position < len(self._batches):
            raise IndexError(f"position is {position}, expected 0 to {len(self._batches) - 1}")
        pictures = self._batches[position]
        crops = [crop(picture.size, picture.bucket) for picture in pictures]
        latents = [self._cache.get(picture, cut, False) for picture, cut in zip(pictures, crops, strict=True)]
        return Batch(
            latents=sampled(latents, generator(self._settings.seed, NOISE, position), self._scaling),
            captions=tuple(caption_to_measure(picture.source.captions, self._settings) for picture in pictures),
            weights=torch.ones(len(pictures)),
            masks=masks_of(latents, self._settings),
            sizes=tuple(sizes_of(picture, cut, False) for picture, cut in zip(pictures, crops, strict=True)),
        )


def _in_buckets(pictures: Sequence[Picture], size: int) -> list[tuple[Picture, ...]]:
    ordered = sorted(pictures, key=lambda picture: (picture.bucket, picture.content))
    batches: list[list[Picture]] = []
    for picture in ordered:
        if not batches or len(batches[-1]) == size or batches[-1][0].bucket != picture.bucket:
            batches.append([])
        batches[-1].append(picture)
    return [tuple(batch) for batch in batches]


def crop_of_use(use: Use, settings: DataSettings) -> Crop:
    """The middle, or what the seed says for this epoch and picture."""
    picture = use.picture
    if settings.crop == "centre":
        return crop(picture.size, picture.bucket)
    random = generator(settings.seed, CROP, use.epoch, of_content(picture.content), use.repeat)
    return crop(picture.size, picture.bucket, random)


def is_mirrored(use: Use, settings: DataSettings) -> bool:
    """Whether this use is mirrored."""
    return settings.flip and bool(_of_use(use, settings, 0).random() < 0.5)


def caption_at(use: Use, settings: DataSettings) -> str:
    """The caption of this use."""
    source = use.picture.source
    return caption_of_use(source.captions, source.prior, settings, _of_use(use, settings, 1))


def _of_use(use: Use, settings: DataSettings, choice: int) -> np.random.Generator:
    return generator(settings.seed, USE, use.epoch, of_content(use.picture.content), use.repeat, choice)


def sizes_of(picture: Picture, cut: Crop, mirrored: bool) -> Sizes:
    """What SDXL is told. Of a mirrored picture the crop begins where it does in the mirrored whole."""
    left = cut.covering[0] - cut.left - cut.bucket[0] if mirrored else cut.left
    return Sizes(height=picture.size[1], width=picture.size[0], top=cut.top, left=left)


def sampled(latents: Sequence[Latents], random: np.random.Generator, scaling: Scaling) -> Tensor:
    """One sample of each posterior, mean + deviation * noise, scaled: [n, channels, h, w], fp32."""
    mean, std = (torch.stack([getattr(each, name) for each in latents]) for name in ("mean", "std"))
    noise = torch.from_numpy(random.standard_normal(tuple(mean.shape), dtype=np.float32))
    return (mean + std * noise - scaling.shift) * scaling.factor


def masks_of(latents: Sequence[Latents], settings: DataSettings) -> Tensor | None:
    """[n, 1, h, w]: 1 where a mask is white or there is none, the unmasked weight where it is black."""
    if all(each.mask is None for each in latents):
        return None
    floor = settings.unmasked_weight
    whole = torch.ones(1, *latents[0].mean.shape[1:])
    weights = [whole if each.mask is None else floor + (1 - floor) * each.mask for each in latents]
    return torch.stack(weights)
