"""What one update of the trainer learns from.

Takes nothing; fixes the shape of what the data side gives and the loop takes. Knows no file, no model and no optimiser.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sizes:
    """What SDXL is told of a picture: its size before resizing, and where the crop begins, in pixels."""

    height: int
    width: int
    top: int
    left: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures of one bucket.

    latents: [n, channels, h, w], fp32, scaled as the UNet takes them; captions: n texts, a dropped one is empty;
    weights: [n] of each picture's loss, prior pictures have the prior weight; masks: [n, 1, h, w] in [0, 1] by which
    the loss is weighed, or None; sizes: n of them.
    """

    latents: Tensor
    captions: tuple[str, ...]
    weights: Tensor
    masks: Tensor | None
    sizes: tuple[Sizes, ...]


class Batches(Protocol):
    """A stream of batches that is a pure function of its position, so that a resumed run sees what an unbroken one
    would have seen."""

    def batch(self, position: int) -> Batch:
        """The batch of a micro-step, counted from 0 over the whole run."""
        ...
