"""What every side of the benchmark trains: the built-in base's attention at rank 4, on pictures of twice its size.

Takes a folder; gives pictures with captions in it. Knows no side.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

RANK = 4
RATE = 1e-4
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
PICTURES = 32
THREADS = 1
"""Of each side. A base this small gains nothing by a second: on two cores a step of the trainer took 168 ms with it."""
EDGE = 64
SHOT = 2 * EDGE  # of a picture's file: people's pictures are larger than what is trained at
CAPTIONS = ("a red apple", "an owl on a blue background", "a pine tree", "a light bulb on a pink background")
BATCH = len(CAPTIONS)


def write_pictures(folder: Path) -> None:
    """Smooth random pictures, each with a caption beside it."""
    random = np.random.default_rng(0)
    for index in range(PICTURES):
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
        file = folder / f"{index:02}.png"
        coarse.resize((SHOT, SHOT), Image.Resampling.BICUBIC).save(file)
        file.with_suffix(".txt").write_text(CAPTIONS[index % BATCH])


def known_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Latents, noise and timesteps on which all sides, with factors that change nothing yet, have the same loss."""
    random = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(BATCH, 4, EDGE // 4, EDGE // 4, generator=random) for _ in range(2))
    return latents, noise, torch.linspace(0, 999, BATCH).long()
