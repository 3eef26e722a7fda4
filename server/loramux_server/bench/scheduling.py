"""How fairly the scheduler shares: requests at random on a simulated device and clock.

Takes nothing; gives rows and a curve of how long requests took over their fair share. The fair share is what an ideal
machine would take that gives every request present its part by weight at every moment, whatever its size, and that is
lost in neither whole forwards nor batches: processor sharing, fluid. It knows no device and no tensors.
"""

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from loramux_server.bench.harness import Row
from loramux_server.requests import ImageKey, Priority, Sampler, Sampling
from loramux_server.scheduler import WEIGHTS, Item, Scheduler

_BUCKETS = ((32, 32), (32, 48), (48, 48), (64, 64))
_STEPS = (8, 20, 28, 50)
_PICTURES = (1, 1, 1, 1, 2, 2, 4, 16)
CAPACITY = 100.0
"""Rows that the device steps in a second, at 512 pixels squared and in forwards of any size."""
_LOAD = 0.8  # of the capacity
_COUNT = 2000
_CURVE = Path("out/bench/scheduler.png")
_SIZE = (720, 400)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of the load. rows, steps: of each of its pictures."""

    at: float
    bucket: tuple[int, int]
    pictures: int
    rows: int
    steps: int
    priority: Priority

    @property
    def cost(self) -> float:
        """Of all its pictures, with the area of 512 pixels squared as 1."""
        return self.pictures * self.rows * self.steps * _area(self.bucket)

    @property
    def weight(self) -> float:
        """By priority."""
        return WEIGHTS[self.priority]


def load(count: int, seed: int, priorities: Sequence[Priority] = (Priority.NORMAL,)) -> list[Asked]:
    """So many requests of mixed sizes, samplers, steps and pictures at 80 % of the capacity: they arrive at random
    (Poisson), whoever waits."""
    draw = random.Random(seed)
    asked = [_asked(draw, priorities) for _ in range(count)]
    mean = statistics.fmean(each.cost for each in asked)
    at, placed = 0.0, list[Asked]()
    for each in asked:
        at += draw.expovariate(_LOAD * CAPACITY / mean)
        placed.append(Asked(at, each.bucket, each.pictures, each.rows, each.steps, each.priority))
    return placed


def _asked(draw: random.Random, priorities: Sequence[Priority]) -> Asked:
    sampling = Sampling(draw.choice(list(Sampler)), draw.choice(_STEPS))
    rows = draw.choice((1, 2, 2, 2))
    priority = draw.choice(priorities)
    return Asked(0.0, draw.choice(_BUCKETS), draw.choice(_PICTURES), rows, sampling.evaluations, priority)


def _area(bucket: tuple[int, int]) -> float:
    return bucket[0] * bucket[1] / 4096


def simulate(asked: Sequence[Asked], max_rows: int) -> list[float]:
    """Seconds from arrival to the last step of each request, under the scheduler."""
    now, coming, took = 0.0, 0, [0.0] * len(asked)
    scheduler = Scheduler(10**9, lambda _area: max_rows, lambda: now)
    left: dict[ImageKey, int] = {}
    unfinished = [each.pictures for each in asked]
    while coming < len(asked) or left:
        if not left:
            now = max(now, asked[coming].at)
        while coming < len(asked) and asked[coming].at <= now:
            left |= _take_in(scheduler, str(coming), asked[coming])
            coming += 1
        plan = scheduler.plan()
        assert plan is not None, "idle though work is ready"
        seconds = plan.rows * _area(plan.bucket) / CAPACITY
        now += seconds
        scheduler.stepped(plan, seconds)
        for key in plan.keys:
            left[key] -= 1
            if left[key] == 0:
                del left[key]
                scheduler.finish([key])
                scheduler.remove([key])
                unfinished[int(key.job)] -= 1
                if unfinished[int(key.job)] == 0:
                    took[int(key.job)] = now - asked[int(key.job)].at
    return took


def _take_in(scheduler: Scheduler, job: str, each: Asked) -> dict[ImageKey, int]:
    keys = [ImageKey(job, index) for index in range(each.pictures)]
    scheduler.submit([Item(key, each.bucket, each.rows, each.steps, each.priority) for key in keys])
    scheduler.ready(keys)
    return dict.fromkeys(keys, each.steps)


def fair_shares(asked: Sequence[Asked]) -> list[float]:
    """Seconds that each request would take on the ideal machine."""
    now, coming, took = 0.0, 0, [0.0] * len(asked)
    left: dict[int, float] = {}
    while coming < len(asked) or left:
        weight = sum(asked[index].weight for index in left)
        ends = {index: now + cost * weight / asked[index].weight / CAPACITY for index, cost in left.items()}
        first = min(ends, key=lambda index: ends[index]) if ends else -1
        arrival = asked[coming].at if coming < len(asked) else math.inf
        until = min(arrival, ends[first] if ends else math.inf)
        for index in left:
            left[index] -= (until - now) * CAPACITY * asked[index].weight / weight
        now = until
        if arrival <= until:
            left[coming] = asked[coming].cost
            coming += 1
        else:
            del left[first]
            took[first] = now - asked[first].at
    return took


def measure() -> list[Row]:
    """What requests took over their fair share, with short forwards and with the longest that a CPU gets."""
    rows: list[Row] = []
    curves: dict[str, list[float]] = {}
    for max_rows in (8, 32):
        asked = load(_COUNT, seed=0)
        fair, took = fair_shares(asked), simulate(asked, max_rows)
        over = curves[f"{max_rows} rows"] = sorted(one / other for one, other in zip(took, fair, strict=True))
        what = f"time over fair share, {max_rows} rows a forward"
        rows += [
            Row(f"{what}: median", statistics.median(over), "x"),
            Row(f"{what}: 99 %", over[len(over) * 99 // 100], "x", "<=3"),
            Row(f"{what}: worst", over[-1], "x", "<=3"),
        ]
    draw(curves, _CURVE)
    return rows


def draw(curves: Mapping[str, Sequence[float]], file: Path) -> None:
    """Parts of the requests, from 0 to 1 upwards, that took at most 1 to 6 times their fair share."""
    width, height = _SIZE
    picture = Image.new("RGB", _SIZE, "white")
    pen = ImageDraw.Draw(picture)

    def place(over: float, part: float) -> tuple[float, float]:
        return 40 + (min(over, 6.0) - 0.5) / 5.5 * (width - 60), height - 30 - part * (height - 50)

    for over in range(1, 7):
        pen.line([place(over, 0), place(over, 1)], fill="red" if over == 3 else "lightgray")
        pen.text(place(over, -0.02), f"{over}x", fill="black")
    for (name, curve), colour in zip(curves.items(), ("navy", "darkorange", "green"), strict=False):
        pen.line([place(over, index / len(curve)) for index, over in enumerate(curve, 1)], fill=colour, width=2)
        middle = curve[len(curve) * 9 // 10]
        pen.text(place(middle, 0.8 if colour == "navy" else 0.7), name, fill=colour)
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file)
