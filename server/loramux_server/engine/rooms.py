"""What adapters take up on the device, by name: rank rows, scale rows and side operations of each layer group, and the
bytes of side operations.

Takes sizes; gives numbers, and takes them back. It knows no adapter, no layer and no request.
"""

from collections.abc import Sequence
from typing import Protocol

from loramux_kernels import PoolFull

OUTPUTS = " output scales"
"""After a layer group's name: its scale rows of outputs. The rank rows have the group's own name."""
INPUTS = " input scales"
SIDES = " side operations"
SIDE_BYTES = "bytes of side operations"
"""One for all layer groups."""


class Room(Protocol):
    """Numbers that one adapter owns at a time."""

    @property
    def capacity(self) -> int:
        """How many there are."""
        ...

    @property
    def free(self) -> int:
        """How many nobody owns."""
        ...

    def take(self, count: int) -> Sequence[int]:
        """So many of them.

        Raises:
            PoolFull: and nothing was taken.
        """
        ...

    def give_back(self, numbers: Sequence[int], /) -> None:
        """Frees what `take` gave."""
        ...


class ByteBudget:
    """Bytes that have no place, only a number: what `take` gives is as long as it is large."""

    def __init__(self, size: int) -> None:
        self.capacity = self.free = size

    def take(self, count: int) -> range:
        """So many bytes.

        Raises:
            PoolFull: and nothing was taken.
        """
        if count > self.free:
            raise PoolFull(count, self.free)
        self.free -= count
        return range(count)

    def give_back(self, numbers: Sequence[int]) -> None:
        """Frees what `take` gave."""
        self.free += len(numbers)
