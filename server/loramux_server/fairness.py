"""Who is owed what: shares of a forward, and accounts of what everybody got beside what was due.

Takes demands and weights; gives shares and choices. It knows no picture, no bucket and no clock.

An account holds what is owed: what was due by weight less what was got. Whoever is owed most is served next. Accounts
start at 0 and close when their owner has nothing to do, so nobody saves up while idle, and nobody can be pushed back
for ever by newcomers: a newcomer, at 0, is served before others only while nobody is owed anything.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from typing import Generic, TypeVar

HELD_BACK = 1.5
"""How much slower than with its fair share a small request may be for the company of large ones, where large forwards
gain nothing. Less would cut up forwards of requests that are nearly alike."""

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Claim:
    """What one request could do in the next forward: that many pictures of that many rows each."""

    rows: int
    pictures: int
    weight: float

    @property
    def demand(self) -> int:
        """Rows of all its pictures."""
        return self.rows * self.pictures


def shares(capacity: float, claims: Sequence[Claim]) -> list[float]:
    """Rows due to each claim: by weight, none more than its demand, what that leaves over to the others (max-min)."""
    due = [0.0] * len(claims)
    weight = sum(claim.weight for claim in claims)
    for index in sorted(range(len(claims)), key=lambda index: claims[index].demand / claims[index].weight):
        claim = claims[index]
        due[index] = min(claim.demand, capacity * claim.weight / weight)
        capacity -= due[index]
        weight -= claim.weight
    return due


def considerate(steps: Iterable[tuple[float, float]]) -> float:
    """Cost up to which a forward holds nobody back, from the cost of everybody's next step and the part by weight that
    is due to it: no forward takes longer than HELD_BACK times the time in which that step is due."""
    return min(HELD_BACK * cost / part for cost, part in steps)


def fill(capacity: int, claims: Sequence[Claim], credits: Sequence[float]) -> list[int]:
    """Pictures of each claim that a forward takes: one after another from whoever has most credit, the first of
    equals, until no picture fits."""
    taken, heap = [0] * len(claims), [(-credit, index) for index, credit in enumerate(credits)]
    heapify(heap)
    while heap:
        debit, index = heap[0]
        claim = claims[index]
        if taken[index] == claim.pictures or claim.rows > capacity:
            heappop(heap)
            continue
        taken[index] += 1
        capacity -= claim.rows
        heapreplace(heap, (debit + claim.rows, index))
    return taken


class Accounts(Generic[K]):
    """What each of several owners is owed."""

    def __init__(self) -> None:
        self._owed: dict[K, float] = {}

    def owed(self, owner: K) -> float:
        """Negative where it got more than its due."""
        return self._owed.get(owner, 0.0)

    def settle(self, owner: K, due: float, got: float, *, served: bool) -> None:
        """served: the owner got all it could use, so that nothing is owed to it."""
        owed = self.owed(owner) + due - got
        self._owed[owner] = min(owed, 0.0) if served else owed

    def keep(self, owners: Iterable[K]) -> None:
        """Closes the accounts of all others."""
        kept = set(owners)
        self._owed = {owner: owed for owner, owed in self._owed.items() if owner in kept}

    def share_out(self, paid: float, owner: K, weights: Mapping[K, float]) -> None:
        """What `owner` got was due to all by weight."""
        total = sum(weights.values())
        for each, weight in weights.items():
            self.settle(each, paid * weight / total, paid if each == owner else 0.0, served=False)
