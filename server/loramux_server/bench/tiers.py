"""A thousand adapters asked for with a Zipf tail where the device has room for fifty, against a stream over fifty.

Takes nothing; gives rows: throughput, hit ratios, memory, and how long ticks stand still while an adapter is loaded by
a slow disk or a slow copier. Adapters are of rank 8, all different, on the built-in base; the whole server runs but for
its network side.
"""

import ctypes
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from loramux_server.admission import MAX_STEPS
from loramux_server.app import App
from loramux_server.bench.harness import Row
from loramux_server.engine.host_tier import foreseen_bytes
from loramux_server.requests import BlendEntry, Done, Event, Failed, GenerationRequest, ImageReady, Output
from loramux_server.settings import Settings
from loramux_store.record import UploadSpec

RANK = 8
_IN_FLIGHT = 8
_STEPS = 20  # the default
_SLOWED_S = 1.0
_PIXELS = Output(parameters=False)  # else every file says another adapter
_ROUNDS = 3
_HOST_ROOMS = 4  # as many adapters as on the device fit into host memory, so many times
_SETTLING_S = 0.1  # for the first ticks of a picture
_FEWEST_TICKS = 5


@dataclass(frozen=True, slots=True)
class Size:
    """adapters: on the shelf; room: how many the device has room for; requests: of each side in one round, of so many
    steps; slow: loads that are slowed."""

    adapters: int
    room: int
    requests: int
    slow: int
    steps: int = _STEPS


WHOLE = Size(adapters=1000, room=50, requests=100, slow=5)


def measure(size: Size = WHOLE) -> list[Row]:
    """All rows."""
    with tempfile.TemporaryDirectory() as folder, _app(Path(folder), size) as app:
        names = _publish(app, Path(folder), size.adapters)
        _fill_host(app, names, size)
        asked = f"{size.adapters} adapters of rank {RANK} where {size.room} fit"
        return [*_throughput(app, names, size, asked), *_slow_loads(app, names, size)]


@contextmanager
def _app(folder: Path, size: Size) -> Generator[App]:
    """With a pool for some."""
    app = App(Settings(store=folder / "store"))
    for group in app.engine.groups.values():
        group.open(size.room * RANK + 1, app.engine.base.device)
    app.runner.start()
    try:
        yield app
    finally:
        app.runner.stop()
        app.store.close()


def _publish(app: App, folder: Path, count: int) -> list[str]:
    """So many different adapters of the UNet's attention, the most asked for first."""
    layers, names = app.engine.groups["unet.attention"].layers, [f"adapter-{number:04}" for number in range(count)]
    shapes = {path: tuple(layer.weight.shape) for path, layer in layers.items()}
    dice = torch.Generator().manual_seed(0)
    for name in names:
        factors = {f"{path}.lora_A.weight": torch.randn(RANK, k, generator=dice) for path, (_, k) in shapes.items()}
        factors |= {
            f"{path}.lora_B.weight": torch.randn(n, RANK, generator=dice) / 50 for path, (n, _) in shapes.items()
        }
        save_file(factors, folder / "one.safetensors")
        app.store.publish(folder / "one.safetensors", UploadSpec(name=name))
    return names


def _fill_host(app: App, names: Sequence[str], size: Size) -> None:
    """Host memory for some of the adapters too, full of those that are asked for least, so that every tier puts out
    from the beginning."""
    host = app.engine.adapters.host
    host.budget = _HOST_ROOMS * size.room * foreseen_bytes(app.store.resolve(names[0]))
    for name in names[-_HOST_ROOMS * size.room :]:
        entry = host.hold(app.store.resolve(name))
        entry.future.result()
        host.release(entry)


def _throughput(app: App, names: Sequence[str], size: Size, asked: str) -> list[Row]:
    """The same Zipf draws over all adapters and over as many as there is room for, in turn; the first of each side only
    warms up. Memory is compared between the ends of the first and the last timed stream over all."""
    _check_difference(app, names)
    sides = {count: _zipf(count, size.requests * (_ROUNDS + 1)) for count in (size.adapters, size.room)}
    seconds: dict[int, list[float]] = {count: [] for count in sides}
    memory, found = list[int](), Counter[str]()
    for turn in range(_ROUNDS + 1):
        for count, picked in sides.items():
            before = _found(app)
            stream = [names[index] for index in picked[turn * size.requests :][: size.requests]]
            seconds[count].append(_run(app, stream, size.steps))
            if count == size.adapters and turn:
                found.update(_found(app) - before)
                memory.append(_settled_bytes())
    taken = {count: statistics.median(each[1:]) for count, each in seconds.items()}
    growth = (memory[-1] - memory[0]) / (_ROUNDS - 1) / 2**20
    return [
        Row(f"throughput, {asked} / {size.room} adapters", taken[size.room] / taken[size.adapters], "x", ">=0.8"),
        Row(f"{asked}: pictures", size.requests / taken[size.adapters], "a second"),
        Row(f"{asked}: found on the device", _ratio(found, "device"), "of requests"),
        Row(f"{asked}: of the others, found in host memory", _ratio(found, "host"), "of requests"),
        Row(f"{asked}: growth of memory, {size.requests} requests", growth, "MiB", "<=16"),
    ]


def _found(app: App) -> Counter[str]:
    """Hits and misses, by tier."""
    value = app.metrics.registry.get_sample_value
    return Counter(
        {
            f"{tier} {what}": int(value(f"loramux_adapter_cache_{what}_total", {"tier": tier}) or 0)
            for tier in ("device", "host")
            for what in ("hits", "misses")
        }
    )


def _ratio(found: Counter[str], tier: str) -> float:
    return found[f"{tier} hits"] / max(1, found[f"{tier} hits"] + found[f"{tier} misses"])


def _zipf(count: int, draws: int) -> list[int]:
    """Ranks from 0, the k-th with a chance in proportion to 1/k."""
    weights = list(accumulate(1 / rank for rank in range(1, count + 1)))
    return random.Random(1).choices(range(count), cum_weights=weights, k=draws)


def _check_difference(app: App, names: Sequence[str]) -> None:
    """Two adapters draw two pictures, or nothing is proved."""
    one, other = (_finished(app, name) for name in names[:2])
    assert one != other, "the adapters do nothing"


def _finished(app: App, name: str) -> list[bytes]:
    pictures, ended = list[bytes](), threading.Event()

    def hear(event: Event) -> None:
        if isinstance(event, ImageReady):
            pictures.append(event.data)
        elif isinstance(event, Done | Failed):
            ended.set()

    _submit(app, name, hear)
    ended.wait()
    return pictures


def _run(app: App, stream: Sequence[str], steps: int) -> float:
    """Seconds that the requests take, so many in flight at once."""
    free, failed = threading.Semaphore(_IN_FLIGHT), list[Exception]()

    def hear(event: Event) -> None:
        if isinstance(event, Failed):
            failed.append(event.error)
        if isinstance(event, Done | Failed):
            free.release()

    started = time.perf_counter()
    for name in stream:
        free.acquire()
        _submit(app, name, hear, steps)
    for _ in range(_IN_FLIGHT):
        free.acquire()
    assert not failed, failed[0]
    return time.perf_counter() - started


def _submit(app: App, name: str | None, hear: Callable[[Event], Any], steps: int = _STEPS) -> str:
    blend = () if name is None else (BlendEntry(name, 0.8),)
    job = app.admission.admit(GenerationRequest("a red apple", blend=blend, steps=steps, seed=1, output=_PIXELS))
    app.runner.submit(job, hear)
    return job.id


def _slow_loads(app: App, names: Sequence[str], size: Size) -> list[Row]:
    """Gaps between the ticks of a long picture while an adapter is loaded beside it, and while none is, in turn: what
    else the machine does then takes its part in both, and their ratio is what loading does."""
    slowed = {"reader": (app.engine.adapters.host, "read"), "copier": (app.engine.groups["unet.attention"], "write")}
    over: dict[str, list[float]] = {what: [] for what in ("nothing", *slowed)}
    for name in names[-size.slow :]:
        over["nothing"].append(_longest_gap(app, partial(time.sleep, _SLOWED_S)))
        for what, (owner, method) in slowed.items():
            quick = getattr(owner, method)
            setattr(owner, method, _slowed(quick))
            over[what].append(_longest_gap(app, partial(_load, app, name)))
            setattr(owner, method, quick)
    idle, said = statistics.median(over["nothing"]), "longest gap between ticks over the median"
    rows: list[Row] = []
    for what in slowed:
        text, found = f"{said}, {what} slowed to {_SLOWED_S:g} s", statistics.median(over[what])
        rows += [
            Row(text, found, "x", "<=1.5"),
            Row(f"{text} / nothing loaded", found / idle, "x", "<=1.5"),
            Row(f"{text}: worst of {size.slow}", max(over[what]), "x"),
        ]
    return [*rows, Row(f"{said}, nothing loaded", idle, "x")]


def _load(app: App, name: str) -> None:
    """Brings an adapter from the disk to the device, in vain."""
    app.engine.adapters.evict_unused()
    app.engine.adapters.release(app.engine.adapters.request([app.store.resolve(name)]).result())


def _slowed(quick: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*given: Any) -> Any:
        time.sleep(_SLOWED_S)
        return quick(*given)

    return slow


def _longest_gap(app: App, beside: Callable[[], object]) -> float:
    """Between the ticks of a picture without adapters, over their median, from when something begins to its end."""
    ticks, step, begun = list[float](), app.engine.step, threading.Event()

    def timed(keys: Any) -> Any:
        ticks.append(time.perf_counter())
        begun.set()
        return step(keys)

    app.engine.step = timed
    job = _submit(app, None, lambda _: None, steps=MAX_STEPS)
    begun.wait()
    time.sleep(_SETTLING_S)
    first = len(ticks)
    beside()
    gaps = [after - before for before, after in pairwise(ticks[first:])]
    app.runner.cancel(job)
    app.engine.step = step
    assert len(gaps) >= _FEWEST_TICKS, f"only {len(gaps)} ticks beside it: they stood still, or the picture ended"
    return max(gaps) / statistics.median(gaps)


def _settled_bytes() -> int:
    """Resident memory, once the C library has given back what it can."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
