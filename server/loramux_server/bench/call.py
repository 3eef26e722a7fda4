"""What a Generate call costs beside the drawing: the same picture over gRPC and by calling the engine, in one process.

Takes nothing; gives a row. The engine is called as the runner calls it, on this thread; the server runs on another.
"""

import asyncio
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from loramux_client import Client
from loramux_server.app import App, Ready
from loramux_server.bench.harness import Row
from loramux_server.requests import GenerationRequest, ImageKey
from loramux_server.settings import Settings

_STEPS = 8
_REPEATS = 75
_PROMPT = "a red apple"


def measure(repeats: int = _REPEATS) -> list[Row]:
    """In pairs, whose differences are compared: a machine that is slow for a while is so for both of a pair."""
    with tempfile.TemporaryDirectory() as folder, _serving(Path(folder)) as (app, client):
        calls = {
            "gRPC": lambda: client.generate(_PROMPT, steps=_STEPS, seed=7).images[0].data,
            "engine": lambda: _draw(app),
        }
        assert calls["gRPC"]() == calls["engine"](), "they draw different pictures"
        extra = statistics.median(_seconds(calls["gRPC"]) - _seconds(calls["engine"]) for _ in range(repeats))
    return [Row("Generate over gRPC, beyond the engine's own time for the picture", extra * 1e3, "ms", "<=5")]


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _draw(app: App) -> bytes:
    """The picture, without queue and wire. The runner's thread is idle meanwhile."""
    job, engine = app.admission.admit(GenerationRequest(_PROMPT, steps=_STEPS, seed=7)), app.engine
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
