"""The order of a run: which picture is used at which position, and with which chances.

Takes pictures and settings; gives, for an epoch and for a position, the uses of its batches: a pure function, so that a
resumed run goes on where it was. Opens nothing.

An epoch uses every picture as often as its repeats say, and as many class pictures; of these the epochs take turns, so
that each is used. Uses of one bucket make batches; the last of a bucket is smaller, and none is dropped.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from loramux_train.data.buckets import Size
from loramux_train.data.picture import Picture
from loramux_train.data_settings import DataSettings

# What a random generator is for: different words, so that one choice says nothing of another.
ORDER, PRIOR, USE, CROP, NOISE = range(5)

_KEPT = 4  # epochs whose order is remembered


@dataclass(frozen=True, slots=True)
class Use:
    """One use of one picture: the how-manieth of its epoch, from 0."""

    picture: Picture
    epoch: int
    repeat: int


def generator(seed: int, purpose: int, *place: int) -> np.random.Generator:
    """Random numbers that depend on these numbers alone."""
    return np.random.default_rng([seed, purpose, *place])


def of_content(content: str) -> int:
    """A picture as a number for `generator`: what it holds, not where it lies."""
    return int(content[:16], 16)


class Order:
    """Batches of uses by position. ValueError without pictures to train on."""

    def __init__(self, pictures: Sequence[Picture], settings: DataSettings) -> None:
        self._trained = [picture for picture in pictures if not picture.source.prior]
        self._prior = [picture for picture in pictures if picture.source.prior]
        if not self._trained:
            raise ValueError("no picture to train on")
        self._settings = settings
        self._starts = [0]  # the position each epoch starts at, as far as it was asked for
        self._epochs: dict[int, list[list[Use]]] = {}

    def steps(self, epoch: int) -> int:
        """Batches of an epoch. Epochs with other class pictures can differ in it."""
        return len(self.epoch(epoch))

    def at(self, position: int) -> tuple[int, int]:
        """The epoch of a position, and the batch in it."""
        if position < 0:
            raise ValueError(f"position is {position}, expected 0 or more")
        if not self._prior:  # every epoch is as long
            return divmod(position, self.steps(0))
        while self._starts[-1] <= position:
            self._starts.append(self._starts[-1] + self.steps(len(self._starts) - 1))
        epoch = bisect_right(self._starts, position) - 1
        return epoch, position - self._starts[epoch]

    def uses(self, position: int) -> list[Use]:
        """The uses of one batch, all of one bucket."""
        epoch, index = self.at(position)
        return self.epoch(epoch)[index]

    def epoch(self, epoch: int) -> list[list[Use]]:
        """All batches of an epoch, counted from 0."""
        if epoch not in self._epochs:
            while len(self._epochs) >= _KEPT:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = self._made(epoch)
        return self._epochs[epoch]

    def _made(self, epoch: int) -> list[list[Use]]:
        random = generator(self._settings.seed, ORDER, epoch)
        trained = [Use(picture, epoch, n) for picture in self._trained for n in range(picture.source.repeats)]
        uses = [*trained, *self._class_uses(epoch, len(trained))]
        buckets: defaultdict[Size, list[Use]] = defaultdict(list)
        for index in random.permutation(len(uses)):
            buckets[uses[index].picture.bucket].append(uses[index])
        batches = [batch for bucket in sorted(buckets) for batch in _chunks(buckets[bucket], self._settings.batch_size)]
        return [batches[index] for index in random.permutation(len(batches))]

    def _class_uses(self, epoch: int, count: int) -> list[Use]:
        """The next `count` of an endless row of class pictures, each round of them in an order of its own."""
        uses: list[Use] = []
        seen: dict[str, int] = {}
        rows = [picture for picture in self._prior for _ in range(picture.source.repeats)]
        place = epoch * count
        while rows and len(uses) < count:
            turn, at = divmod(place + len(uses), len(rows))
            order = generator(self._settings.seed, PRIOR, turn).permutation(len(rows))
            for index in order[at : at + count - len(uses)]:
                picture = rows[index]
                key = str(picture.source.path)
                uses.append(Use(picture, epoch, seen.get(key, 0)))
                seen[key] = seen.get(key, 0) + 1
        return uses


def _chunks(uses: list[Use], size: int) -> Iterator[list[Use]]:
    for start in range(0, len(uses), size):
        yield uses[start : start + size]
