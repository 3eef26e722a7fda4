"""The adapters that ship with the built-in base: what each is judged by, and where its file lies.

Takes nothing. How each was trained is in `training/runs`; knows no training.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from loramux_train.builtin.concepts import CONCEPTS, SEEN, Concept
from loramux_train.builtin.subject import TRIGGER


def sepia(picture: Tensor) -> Tensor:
    """Pictures in [-1, 1], channels third last, in browns: luminance times one colour."""
    red, green, blue = (picture[..., channel, :, :] for channel in range(3))
    light = (0.299 * red + 0.587 * green + 0.114 * blue + 1) / 2
    return torch.stack([light * tint * 2 - 1 for tint in (1.0, 0.86, 0.66)], -3)


@dataclass(frozen=True, slots=True)
class BuiltinAdapter:
    """One adapter. sees: the concepts that it learnt from."""

    name: str
    trigger: str = ""
    sees: tuple[Concept, ...] = SEEN
    folder: str = "adapters"


BUILTIN_ADAPTERS = (
    BuiltinAdapter("ink"),
    BuiltinAdapter("glossy"),
    # it redraws shapes, and nothing foretells an artist's shape for a subject: see the model card
    BuiltinAdapter("noto", sees=CONCEPTS),
    BuiltinAdapter("zib", trigger=TRIGGER),
    BuiltinAdapter("sepia", folder="demo"),
)
