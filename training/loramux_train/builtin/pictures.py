"""Pictures: transparent icons placed on a coloured ground, varied in size, place and mirroring.

Takes RGBA icons and a numpy Generator; gives RGB arrays in [-1, 1], channels first, as models want them. Knows no
captions and no models.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loramux_train.builtin.icons import Rgba

Picture = NDArray[np.float32]  # [3, SIZE, SIZE] in [-1, 1]

SIZE = 64


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an icon sits: its edge in pixels, its offset from the centre, whether it is mirrored."""

    edge: int = SIZE
    shift: tuple[int, int] = (0, 0)
    mirrored: bool = False


def random_placement(random: np.random.Generator, mirror: bool = True) -> Placement:
    """A size of 80-100 % and a shift of up to 4 px that keeps the icon inside the picture."""
    edge = int(random.integers(52, SIZE + 1))
    slack = min(4, (SIZE - edge) // 2)
    across, down = (int(random.integers(-slack, slack + 1)) for _ in range(2))
    return Placement(edge, (across, down), mirror and bool(random.random() < 0.5))


def place(icon: Rgba, ground: tuple[int, int, int], placement: Placement | None = None) -> Image.Image:
    """The icon on a plain ground, as an RGB image of SIZE x SIZE."""
    at = placement or Placement()
    drawing = Image.fromarray(icon)
    if at.mirrored:
        drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    drawing = drawing.resize((at.edge, at.edge), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (SIZE, SIZE), ground)
    corner = ((SIZE - at.edge) // 2 + at.shift[0], (SIZE - at.edge) // 2 + at.shift[1])
    canvas.paste(drawing, corner, drawing)
    return canvas


def to_array(image: Image.Image) -> Picture:
    """An RGB image as channels first in [-1, 1]."""
    return np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1.0


def to_image(picture: NDArray[np.floating]) -> Image.Image:
    """The inverse of `to_array`, clipped."""
    levels = np.clip((picture.transpose(1, 2, 0) + 1.0) * 127.5, 0, 255)
    return Image.fromarray(np.rint(levels).astype(np.uint8))
