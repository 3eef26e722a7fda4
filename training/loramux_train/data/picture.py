"""A picture of a run, as the survey knows it: where it is, what it holds, how large it becomes.

Takes nothing. Knows neither pixels nor the order of a run.
"""

from dataclasses import dataclass

from loramux_train.data.buckets import Size
from loramux_train.data.finding import Source


@dataclass(frozen=True, slots=True)
class Picture:
    """content and mask are sha256 of the files' bytes, mask empty without one; sizes are width and height in pixels."""

    source: Source
    content: str
    mask: str
    size: Size
    bucket: Size
    enlarged: float
