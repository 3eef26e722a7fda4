"""Latents: every training picture encoded once, in many placements.

Takes the icons of a style and a trained autoencoder; gives a table of scaled latents indexed by concept, ground and
placement, from which batches are drawn with their captions. Knows no network that learns from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from loramux_train.builtin.concepts import BACKGROUNDS, WHITE, Concept, caption
from loramux_train.builtin.icons import Rgba
from loramux_train.builtin.pictures import place, random_placement, to_array

GROUNDS: tuple[str | None, ...] = (None, *BACKGROUNDS)
ON_WHITE = 0.8  # the share of pictures whose caption names no background


@dataclass(frozen=True, slots=True)
class LatentTable:
    """latents[concept, ground, placement] and the caption of each concept on each ground."""

    latents: Tensor
    captions: tuple[tuple[str, ...], ...]

    def batch(self, count: int, random: np.random.Generator) -> tuple[Tensor, list[str]]:
        """Random latents and their captions, every concept equally likely."""
        concepts, grounds, placements = self.latents.shape[:3]
        concept = random.integers(concepts, size=count)
        coloured = random.random(count) >= ON_WHITE if grounds > 1 else np.zeros(count, bool)
        ground = np.where(coloured, random.integers(1, max(2, grounds), size=count), 0)
        placement = random.integers(placements, size=count)
        words = [self.captions[c][g] for c, g in zip(concept, ground, strict=True)]
        return self.latents[concept, ground, placement], words


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Scaled latents of pictures: the mean, without the posterior's noise."""
    parts = [vae.encode(chunk).latent_dist.mean for chunk in pictures.split(64)]
    return torch.cat(parts) * vae.config["scaling_factor"]


def build_table(
    vae: AutoencoderKL,
    icons: dict[str, Rgba],
    concepts: Sequence[Concept],
    placements: int,
    seed: int,
) -> LatentTable:
    """Encode every concept on every ground.

    The first placement is the centred, unscaled one; none is mirrored.
    """
    random = np.random.default_rng(seed)
    rows: list[Tensor] = []
    for concept in concepts:
        for ground in GROUNDS:
            colour = BACKGROUNDS[ground] if ground else WHITE
            at = [None, *(random_placement(random, mirror=False) for _ in range(placements - 1))]
            images = [to_array(place(icons[concept.icon], colour, placement)) for placement in at]
            rows.append(encode(vae, torch.from_numpy(np.stack(images))))
    latents = torch.stack(rows).unflatten(0, (len(concepts), len(GROUNDS)))
    captions = tuple(tuple(caption(concept, ground) for ground in GROUNDS) for concept in concepts)
    return LatentTable(latents, captions)
