"""When a request would be done, if everybody gets a fair share and nobody else comes.

Takes what is left of the requests and how fast forwards are; gives seconds. It knows no picture and no clock. It counts
denoising alone, neither loading nor decoding, and speeds that are not known as endless: a request that it turns away
could not have made it.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loramux_server.fairness import Claim, shares

Seconds = Callable[[int, int, float], float]
"""Area, rows of a forward, cost: how long that takes."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is left of a request. bucket: latent height and width; cost: rows times area times steps."""

    bucket: tuple[int, int]
    claim: Claim
    cost: float

    @property
    def area(self) -> int:
        """Of the latents."""
        return self.bucket[0] * self.bucket[1]


def finish(new: Load, others: Sequence[Load], max_rows: Callable[[int], int], seconds: Seconds) -> float:
    """Seconds until `new` is done.

    While it gets its cost, those of its bucket get theirs in the ratio of their shares of a forward, and other buckets
    in the ratio of their weights; none more than it has left.
    """
    buckets: dict[tuple[int, int], list[Load]] = defaultdict(list)
    for load in (new, *others):
        buckets[load.bucket].append(load)
    own = buckets.pop(new.bucket)
    due = shares(max_rows(new.area), [load.claim for load in own])
    spent = sum(min(load.cost, new.cost * share / due[0]) for load, share in zip(own, due, strict=True))
    total = _seconds(own, spent, max_rows, seconds)
    for loads in buckets.values():
        total += _seconds(loads, spent * _weight(loads) / _weight(own), max_rows, seconds)
    return total


def everything(loads: Sequence[Load], max_rows: Callable[[int], int], seconds: Seconds) -> float:
    """Seconds until all of them are done."""
    buckets: dict[tuple[int, int], list[Load]] = defaultdict(list)
    for load in loads:
        buckets[load.bucket].append(load)
    return sum(_seconds(each, float("inf"), max_rows, seconds) for each in buckets.values())


def _weight(loads: Sequence[Load]) -> float:
    return sum(load.claim.weight for load in loads)


def _seconds(loads: Sequence[Load], most: float, max_rows: Callable[[int], int], seconds: Seconds) -> float:
    """Of the loads of a bucket, `most` cost at most."""
    area = loads[0].area
    rows = min(max_rows(area), sum(load.claim.demand for load in loads))
    return seconds(area, rows, min(most, sum(load.cost for load in loads)))
