"""What a Generate call costs beside the drawing: the same picture over gRPC and by calling the engine, in one process.

Takes nothing; gives rows. The engine is called as the runner calls it, on this thread; the server runs on another.

A picture's time varies by far more than a call costs. So it is told in two ways: what of a call is not spent in the
engine, where both are parts of one call; and, of pictures of one step, the difference between a call and the engine
called directly, which also has what the two do to each other.
"""

import asyncio
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loramux_client import Client
from loramux_server.app import App, Ready
from loramux_server.bench.harness import Row
from loramux_server.requests import GenerationRequest, ImageKey
from loramux_server.settings import Settings

_STEPS = 8
_CALLS = 25
_PAIRS = 200
_PROMPT = "a red apple"
_ENGINE_WORK = ("begin", "step", "deliver")  # of a picture, one after another


def measure(calls: int = _CALLS, pairs: int = _PAIRS) -> list[Row]:
    """Medians of so many calls, and of so many pairs."""
    with tempfile.TemporaryDirectory() as folder, _serving(Path(folder)) as (app, client):
        for steps in (_STEPS, 1):
            assert _ask(client, steps) == _draw(app, steps), "they draw different pictures"
        outside = statistics.median(_outside(app, client) for _ in range(calls))
        beyond = statistics.median(_beyond(app, client, engine_first=number % 2 == 1) for number in range(pairs))
    return [
        Row(f"Generate over gRPC, {_STEPS} steps, time outside the engine", outside * 1e3, "ms", "<=5"),
        Row("Generate over gRPC, 1 step, beyond the same by the engine alone", beyond * 1e3, "ms", "<=5"),
    ]


def _outside(app: App, client: Client) -> float:
    """Seconds of one call in which the engine does not work for it."""
    with _working(app.engine) as seconds:
        call = _seconds(lambda: _ask(client, _STEPS))
    return call - sum(seconds)


def _beyond(app: App, client: Client, *, engine_first: bool) -> float:
    """Seconds that a call takes more than the engine alone: each finds what the other left in the caches."""
    engine = _seconds(lambda: _draw(app, 1)) if engine_first else None
    call = _seconds(lambda: _ask(client, 1))
    return call - (_seconds(lambda: _draw(app, 1)) if engine is None else engine)


@contextmanager
def _working(engine: Any) -> Generator[list[float]]:
    """How long the engine works at each thing that it does for a picture meanwhile, whoever calls it."""
    seconds: list[float] = []

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            started = time.perf_counter()
            try:
                return work(*args)
            finally:
                seconds.append(time.perf_counter() - started)

        return run

    for name in _ENGINE_WORK:
        setattr(engine, name, timed(getattr(engine, name)))
    try:
        yield seconds
    finally:
        for name in _ENGINE_WORK:
            delattr(engine, name)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _ask(client: Client, steps: int) -> bytes:
    return client.generate(_PROMPT, steps=steps, seed=7).images[0].data


def _draw(app: App, steps: int) -> bytes:
    """The picture, without queue and wire. The runner's thread is idle meanwhile."""
    job, engine = app.admission.admit(GenerationRequest(_PROMPT, steps=steps, seed=7)), app.engine
    lease, key = engine.load(job).result(), ImageKey(job.id, 0)
    engine.begin(job, lease)
    while (result := engine.step([key])[0]).latents is None:
        if result.error is not None:
            raise result.error
    engine.drop([key])
    engine.adapters.release(lease)
    return engine.deliver(job, 0, result.latents)


@contextmanager
def _serving(folder: Path) -> Generator[tuple[App, Client]]:
    """A server on a loop and a thread of its own, and who asks it."""
    app, ready, loop = App(Settings(store=folder, port=0, metrics_port=0)), list[Ready](), asyncio.new_event_loop()
    stop, listening = asyncio.Event(), threading.Event()

    def note(at: Ready) -> None:
        ready.append(at)
        listening.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(app.run(note, stop)), name="server")
    thread.start()
    try:
        listening.wait()
        with Client(f"{ready[0].host}:{ready[0].grpc_port}") as client:
            yield app, client
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
