"""Which pictures step next.

Takes pictures with their bucket, rows and steps, and word of what became ready, stepped, finished or was cancelled;
gives plans, and turns away what the queue cannot hold or what cannot make its deadline. It knows no torch, no gRPC and
no engine.

Two accounts (`fairness`) decide: buckets are owed cost, by the weights of the requests in them; requests are owed rows
of their bucket's forwards. A forward is full where enough is ready. Pictures of one request run in the order of their
index. Pictures that are not ready (their adapters are loading) are passed over, so they hold nobody up.
docs/scheduling.md has the rules and the test of each.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from loramux_server import forecast
from loramux_server.errors import Busy, TooLate
from loramux_server.fairness import Accounts, Claim, considerate, fill, shares
from loramux_server.forecast import Load
from loramux_server.requests import ImageKey, Priority
from loramux_server.speed import Speed

Bucket = tuple[int, int]
"""Latent height and width: pictures of one bucket can share a forward."""

WEIGHTS = {Priority.INTERACTIVE: 4.0, Priority.NORMAL: 1.0, Priority.BATCH: 0.25}
"""A request's part of the machine beside others'. A factor of four is felt at once and starves nobody."""


@dataclass(frozen=True, slots=True)
class Item:
    """A picture in the queue. rows: rows of a forward it takes, 1 or 2; steps: forwards it needs."""

    key: ImageKey
    bucket: Bucket
    rows: int
    steps: int
    priority: Priority = Priority.NORMAL


@dataclass(frozen=True, slots=True)
class Plan:
    """The pictures of one tick, all of one bucket, and their rows in all."""

    bucket: Bucket
    keys: tuple[ImageKey, ...]
    rows: int

    @property
    def area(self) -> int:
        """Of the latents."""
        return self.bucket[0] * self.bucket[1]


@dataclass(slots=True)
class _Request:
    """The pictures of one job that are not forgotten, with the steps that each has left. All of them are alike."""

    bucket: Bucket
    rows: int
    weight: float
    left: dict[ImageKey, int] = field(default_factory=dict[ImageKey, int])
    finished: set[ImageKey] = field(default_factory=set[ImageKey])
    ready: bool = False

    def claim(self) -> Claim:
        return Claim(self.rows, len(self.left), self.weight)

    def cost(self) -> int:
        """Of a step of all its pictures."""
        return self.rows * self.bucket[0] * self.bucket[1] * len(self.left)

    def load(self) -> Load:
        return Load(self.bucket, self.claim(), self.rows * self.bucket[0] * self.bucket[1] * sum(self.left.values()))


class Scheduler:
    """The queue and the choice of the next tick. Not thread-safe: the runner guards it.

    max_images: pictures waiting, running or being encoded before `submit` says Busy; max_rows: rows of one forward by
    latent area, at least 2.
    """

    def __init__(
        self, max_images: int, max_rows: Callable[[int], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_images = max_images
        self._max_rows = max_rows
        self._speed = Speed(clock)
        self._requests: dict[str, _Request] = {}
        self._owed_rows = Accounts[str]()
        self._owed_cost = Accounts[Bucket]()
        self._turns: dict[Bucket, None] = {}

    @property
    def waiting(self) -> int:
        """Pictures that are not ready to step."""
        return sum(len(request.left) for request in self._requests.values() if not request.ready)

    @property
    def running(self) -> int:
        """Pictures that are ready to step."""
        return sum(len(request.left) for request in self._requests.values() if request.ready)

    @property
    def speed(self) -> float:
        """Rows times area that recent forwards made in a second; 0 where none was measured."""
        return self._speed.cost_per_second

    def submit(self, items: Sequence[Item], seconds_left: float | None = None) -> int:
        """Takes in a job's pictures, all or none; returns how many stand before them.

        Raises:
            Busy: where the queue would grow above max_images.
            TooLate: where they cannot be done in seconds_left.
        """
        held = sum(len(request.left) + len(request.finished) for request in self._requests.values())
        unfinished = self.waiting + self.running
        over = held + len(items) - self._max_images
        if over > 0:
            raise Busy(f"{held} pictures are queued, at most {self._max_images}", self._until_gone(over, unfinished))
        first = items[0]
        request = _Request(first.bucket, first.rows, WEIGHTS[first.priority], {item.key: item.steps for item in items})
        if seconds_left is not None:
            self._check_deadline(request, seconds_left, unfinished)
        self._requests[first.key.job] = request
        return unfinished

    def ready(self, keys: Iterable[ImageKey]) -> None:
        """The jobs of these pictures can step from now on."""
        for job in {key.job for key in keys}:
            self._requests[job].ready = True

    def plan(self) -> Plan | None:
        """The next tick, or None where nothing can step. What it takes is charged at once."""
        buckets: dict[Bucket, dict[str, _Request]] = defaultdict(dict)
        for job, request in self._requests.items():
            if request.ready and request.left:
                buckets[request.bucket][job] = request
        self._owed_cost.keep(buckets)
        self._turns = {bucket: None for bucket in (*self._turns, *buckets) if bucket in buckets}
        if not buckets:
            return None
        bucket = max(self._turns, key=self._owed_cost.owed)  # of equals the one that ran longest ago
        del self._turns[bucket]
        self._turns[bucket] = None
        weights = {each: sum(request.weight for request in inside.values()) for each, inside in buckets.items()}
        plan = self._fill(bucket, buckets[bucket], self._considerate(bucket, buckets, weights))
        self._owed_cost.share_out(plan.rows * plan.area, bucket, weights)
        return plan

    def stepped(self, plan: Plan, seconds: float) -> None:
        """The pictures of the plan made a step each, in so many seconds in all."""
        self._speed.measured(plan.area, plan.rows, seconds)
        for key in plan.keys:
            request = self._requests.get(key.job)
            if request is not None and key in request.left:
                request.left[key] = max(0, request.left[key] - 1)

    def finish(self, keys: Iterable[ImageKey]) -> None:
        """These pictures made their last step; they count for the queue until they are removed."""
        for key in keys:
            request = self._requests.get(key.job)
            if request is not None and request.left.pop(key, None) is not None:
                request.finished.add(key)

    def remove(self, keys: Iterable[ImageKey]) -> None:
        """Forgets pictures that were delivered, failed or were cancelled."""
        for key in keys:
            request = self._requests.get(key.job)
            if request is None:
                continue
            request.left.pop(key, None)
            request.finished.discard(key)
            if not request.left and not request.finished:
                del self._requests[key.job]

    def _considerate(
        self, bucket: Bucket, buckets: Mapping[Bucket, Mapping[str, _Request]], weights: Mapping[Bucket, float]
    ) -> float:
        """Cost up to which a forward of the bucket holds nobody back. Who is in it gets a step by it, others must wait
        for the next one."""
        total = sum(weights.values())
        return considerate(
            (request.cost(), request.weight / (weights[each] if each == bucket else total))
            for each, inside in buckets.items()
            for request in inside.values()
        )

    def _fill(self, bucket: Bucket, requests: Mapping[str, _Request], enough: float) -> Plan:
        """Shares a forward of the bucket among the requests that are ready there. enough: cost above which it must pay
        to be larger."""
        claims = [request.claim() for request in requests.values()]
        room = self._room(bucket[0] * bucket[1], claims, enough)
        owed = [self._owed_rows.owed(job) for job in requests]
        taken = fill(room, claims, [o + due for o, due in zip(owed, shares(room, claims), strict=True)])
        rows = sum(count * claim.rows for count, claim in zip(taken, claims, strict=True))
        for job, claim, count, due in zip(requests, claims, taken, shares(rows, claims), strict=True):
            self._owed_rows.settle(job, due, count * claim.rows, served=count == claim.pictures)
        self._owed_rows.keep(self._requests)
        keys = [key for r, count in zip(requests.values(), taken, strict=True) for key in list(r.left)[:count]]
        return Plan(bucket, tuple(keys), rows)

    def _room(self, area: int, claims: Sequence[Claim], enough: float) -> int:
        """Rows of a forward: as many as there are, but none that gain nothing, for whoever comes next would wait for
        them too; and above `enough` only while that makes them a good deal cheaper."""
        full = min(self._max_rows(area), sum(claim.demand for claim in claims))
        bearable = max(int(enough / area), self._speed.worth(area, full))
        return min(full, max(2, min(bearable, self._speed.suffice(area, full))))

    def _loads(self) -> Iterator[Load]:
        return (request.load() for request in self._requests.values() if request.left)

    def _check_deadline(self, request: _Request, seconds_left: float, before: int) -> None:
        needed = forecast.finish(request.load(), list(self._loads()), self._max_rows, self._speed.seconds)
        if needed > seconds_left:
            raise TooLate(
                f"drawing would take at least {needed:.1f} s beside {before} pictures, "
                f"the deadline is in {seconds_left:.1f} s",
                needed,
            )

    def _until_gone(self, pictures: int, of: int) -> float:
        """Seconds until so many of the unfinished pictures are done, at least 1."""
        if of == 0:
            return 1.0
        seconds = forecast.everything(list(self._loads()), self._max_rows, self._speed.seconds)
        return max(1.0, seconds * min(1.0, pictures / of))
