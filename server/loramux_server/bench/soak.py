"""Thousands of requests that load, blend, evict and are cancelled at random: memory must stay flat, pictures right,
and no rank row may be lost.

Takes a number of cycles; gives rows. A cycle is one request: drawn and compared with the same request alone, or
cancelled somewhere on its way. The pool holds only some of the adapters, so that swapping never ends.
"""

import io
import random
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from loramux_server.app import App
from loramux_server.bench.harness import Row
from loramux_server.requests import BlendEntry, Done, Event, Failed, GenerationRequest, ImageReady, Sampler
from loramux_server.settings import Settings

CYCLES = 10_000
_IN_FLIGHT = 6
_CANCELLED = 0.3  # of the requests
_WARM_UP = 0.2  # of the cycles, before memory is watched
_SAMPLES = 100  # of memory, at the most
_ROOM = 0.6  # of all adapters' rank rows that the pool holds


@dataclass(slots=True)
class _Asked:
    """One request in flight. cancel: called when it has heard `cancel_after` events, if any number is given."""

    request: GenerationRequest
    cancel_after: int | None
    cancel: Callable[[], None]
    events: list[Event] = field(default_factory=list[Event])
    ended: threading.Event = field(default_factory=threading.Event)

    def hear(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Done | Failed):
            self.ended.set()
        elif len(self.events) == self.cancel_after:
            self.cancel()


def measure(cycles: int = CYCLES, seed: int = 0) -> list[Row]:
    """What is wrong after `cycles` requests: nothing, if all is well."""
    with tempfile.TemporaryDirectory() as folder:
        app = _app(Path(folder))
        app.runner.start()
        try:
            return _soak(app, cycles, random.Random(seed))
        finally:
            app.runner.stop()
            app.store.close()


def _app(folder: Path) -> App:
    """The built-in base and its adapters, with a pool that does not hold all of them."""
    app = App(Settings(store=folder))
    ranks = [record.latest_version.rank for record in app.store.list_adapters(10, "").items]
    rows = int(sum(ranks) * _ROOM)
    assert rows >= max(ranks), "no adapter fits"
    for group in app.engine.groups.values():
        group.open(rows + 1, app.engine.base.device)
    return app


def _soak(app: App, cycles: int, dice: random.Random) -> list[Row]:
    kinds = _requests(app)
    alone = [_picture(_finished(app, request)) for request in kinds]
    flight: list[_Asked] = []
    wrong, cancelled, memory = 0, 0, list[tuple[int, int]]()
    for cycle in range(cycles):
        cancel_after = dice.randint(1, 4) if dice.random() < _CANCELLED else None
        flight.append(_submit(app, dice.choice(kinds), cancel_after))
        if len(flight) == _IN_FLIGHT:
            asked = flight.pop(dice.randrange(len(flight)))
            cancelled += asked.cancel_after is not None
            wrong += _is_wrong(app, asked, alone[kinds.index(asked.request)])
        if cycle >= cycles * _WARM_UP and cycle % max(1, cycles // _SAMPLES) == 0:
            memory.append((cycle, _resident_bytes()))
    wrong += sum(_is_wrong(app, asked, alone[kinds.index(asked.request)]) for asked in flight)
    labels = {"tier": "device", "reason": "room"}
    evictions = app.metrics.registry.get_sample_value("loramux_adapter_cache_evictions_total", labels)
    return [
        Row("requests", cycles, "cycles"),
        Row("requests cancelled on their way", cancelled, "cycles", ">=1"),
        Row("adapters put out of the pool", evictions or 0, "adapters", ">=1"),
        Row("pictures that were wrong", wrong, "pictures", "<=0"),
        Row("rank rows lost", _lost_rows(app), "rows", "<=0"),
        Row("growth of resident memory after the warm-up", _slope(memory), "bytes a cycle", "<=1024"),
    ]


def _requests(app: App) -> list[GenerationRequest]:
    """Requests of different blends and samplers, of two steps."""
    names = [record.name for record in app.store.list_adapters(10, "").items]
    plain = GenerationRequest("a red apple", steps=2, seed=3)
    alone = [replace(plain, blend=(BlendEntry(name, 0.8),)) for name in names]
    pairs = [
        replace(plain, blend=(BlendEntry(one, 0.6), BlendEntry(other, -0.4)), sampler=Sampler.EULER_ANCESTRAL)
        for one, other in pairwise(names)
        if _fits(app, (one, other))
    ]
    return [plain, *alone, *pairs, replace(alone[0], guidance_scale=1.0, steps=3)]


def _fits(app: App, names: Sequence[str]) -> bool:
    room = min(group.rows.size - 1 for group in app.engine.groups.values())
    return sum(app.store.resolve(name).rank for name in names) <= room


def _submit(app: App, request: GenerationRequest, cancel_after: int | None = None) -> _Asked:
    job = app.admission.admit(request)
    asked = _Asked(request, cancel_after, partial(app.runner.cancel, job.id))
    app.runner.submit(job, asked.hear)
    return asked


def _finished(app: App, request: GenerationRequest) -> _Asked:
    asked = _submit(app, request)
    asked.ended.wait()
    return asked


def _is_wrong(app: App, asked: _Asked, right: np.ndarray) -> bool:
    """Whether a request that was not cancelled gave another picture than alone, or none."""
    if asked.cancel_after is not None:
        return False
    asked.ended.wait()
    got = _picture(asked)
    return got.shape != right.shape or int(np.abs(got.astype(int) - right).max()) > 1


def _picture(asked: _Asked) -> np.ndarray:
    data = [event.data for event in asked.events if isinstance(event, ImageReady)]
    return np.asarray(Image.open(io.BytesIO(data[0]))) if data else np.empty(0)


def _lost_rows(app: App) -> int:
    """Rank rows that are still taken when every request has ended and every unused adapter was put out."""
    assert app.runner.drain(60), "a request did not end"
    app.engine.adapters.evict_unused()
    return sum(group.rows.size - 1 - group.rows.free for group in app.engine.groups.values())


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def _slope(samples: Sequence[tuple[int, int]]) -> float:
    """Least-squares slope of memory over cycles."""
    if len(samples) < 2:
        return 0.0
    cycles, memory = np.array(samples, dtype=float).T
    return float(np.polyfit(cycles, memory, 1)[0])
