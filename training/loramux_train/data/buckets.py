"""Aspect buckets: the sizes pictures are brought to, and which part of a picture is kept.

Takes sizes in pixels; gives sizes and boxes in pixels. Width comes before height here, as in Pillow. Knows no files.
"""

import math
from dataclasses import dataclass

import numpy as np

from loramux_train.data_settings import DataSettings

Size = tuple[int, int]  # width, height


@dataclass(frozen=True, slots=True)
class Buckets:
    """The sizes there are: multiples of a step, none of more than an area, both in pixels.

    Unless pictures are enlarged, a small one also has its own size, down to the step, for a bucket.
    """

    sizes: tuple[Size, ...]
    area: int
    step: int
    longest: int
    upscale: bool

    def choose(self, picture: Size) -> Size:
        """The bucket of a picture of this size: the one whose shape is nearest, of equally near ones the largest."""
        nearest = self._nearest(picture)
        return self._own_size(picture) if not self.upscale and enlargement(picture, nearest) > 1 else nearest

    def _nearest(self, picture: Size) -> Size:
        shape = math.log(picture[0] / picture[1])
        return min(self.sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - shape), -size[0] * size[1], size))

    def _own_size(self, picture: Size) -> Size:
        """The picture's size down to the step, within longest and area; ValueError if a side is less than a step."""
        width, height = (min(side // self.step * self.step, self.longest) for side in picture)
        if not width or not height:
            raise ValueError(
                f"{picture[0]}x{picture[1]} px, expected at least {self.step} px on each side, since upscale is false"
            )
        while width * height > self.area:
            width, height = (width - self.step, height) if width >= height else (width, height - self.step)
        return width, height


def make_buckets(settings: DataSettings) -> Buckets:
    """For each width from the shortest to the longest edge, the largest height within the area; and the square."""
    edge, step, (low, high) = settings.resolution, settings.step, settings.edges
    area, sizes = edge * edge, {(edge, edge)}
    for width in range(low, high + 1, step) if settings.buckets else ():
        height = min(area // width // step * step, high)
        if height >= low:
            sizes |= {(width, height), (height, width)}
    return Buckets(tuple(sorted(sizes)), area, step, high, settings.upscale or not settings.buckets)


def enlargement(picture: Size, bucket: Size) -> float:
    """How many times a picture is enlarged to cover a bucket; below 1 it is made smaller."""
    return max(bucket[0] / picture[0], bucket[1] / picture[1])


@dataclass(frozen=True, slots=True)
class Crop:
    """What is kept: the picture is brought to `covering`, then a box of the bucket's size is taken at left, top."""

    covering: Size
    left: int
    top: int
    bucket: Size

    def box(self, picture: Size) -> tuple[float, float, float, float]:
        """The same box in a picture of any size: left, top, right, bottom."""
        across, down = picture[0] / self.covering[0], picture[1] / self.covering[1]
        right, bottom = self.left + self.bucket[0], self.top + self.bucket[1]
        return self.left * across, self.top * down, min(right * across, picture[0]), min(bottom * down, picture[1])


def crop(picture: Size, bucket: Size, random: np.random.Generator | None = None) -> Crop:
    """The box in the middle, or anywhere that `random` says."""
    scale = enlargement(picture, bucket)
    covering = max(bucket[0], round(picture[0] * scale)), max(bucket[1], round(picture[1] * scale))
    spare = covering[0] - bucket[0], covering[1] - bucket[1]
    if random is None:
        return Crop(covering, spare[0] // 2, spare[1] // 2, bucket)
    return Crop(covering, int(random.integers(spare[0] + 1)), int(random.integers(spare[1] + 1)), bucket)
