"""The loss of a batch, and the randomness it is drawn with.

Takes predictions and targets with the weights of pictures, pixels and timesteps; gives one number. Knows no model.
"""

import numpy as np
import torch
from torch import Tensor

TRAINING, DROPOUT, VALIDATION, TOKENS = 0, 1, 2, 3
"""Streams of randomness, which share nothing."""


def seed_of(seed: int, stream: int, position: int) -> int:
    """The seed of one micro-step's draws: a pure function, so that a resumed run needs no generator's state."""
    words = np.random.SeedSequence((seed, stream, position)).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def generator_of(seed: int, stream: int, position: int) -> torch.Generator:
    """A CPU generator for one micro-step, the same whatever device trains."""
    return torch.Generator().manual_seed(seed_of(seed, stream, position))


def weighed_error(predicted: Tensor, target: Tensor, weights: Tensor, masks: Tensor | None) -> Tensor:
    """mean_n w_n mean_chw m (predicted - target)^2, in fp32.

    predicted, target: [n, c, h, w]; weights: [n], a picture's own weight times its timestep's; masks: [n, 1, h, w] or
    None. Every picture's mean is taken first, so that prior pictures, masks and min-SNR multiply as numbers of [n].
    """
    error = (predicted.float() - target.float()).square()
    if masks is not None:
        error = error * masks
    return (error.mean(dim=(1, 2, 3)) * weights).mean()
