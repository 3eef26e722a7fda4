"""Eight pictures with eight blends: in one forward a tick, against one after another, against no adapters, and against
diffusers with PEFT."""

import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from torch import Tensor

from loramux_server.app import BUILTIN_FOLDER, DETERMINISTIC_ROWS, App
from loramux_server.bench import harness
from loramux_server.bench.harness import Row, ratio
from loramux_server.bench.peer import Peer
from loramux_server.engine.device_tier import Lease
from loramux_server.engine.pictures import decode
from loramux_server.requests import BlendEntry, Done, Event, Failed, GenerationRequest, ImageKey, Job
from loramux_server.runner import Runner
from loramux_server.scheduler import Plan, Scheduler
from loramux_server.settings import Settings

_STEPS = 6
_PEER_STEPS = 20  # the default: whole pictures
_TICKS = 40
_WEIGHTS = (0.3, 0.6, 0.9, 1.2)


def measure() -> list[Row]:
    """Ratios of whole denoising runs on the built-in base."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _app(folder) as app,
        _app(folder, deterministic=True) as fixed,
        _app(folder, cross_attention_cache_bytes=0) as forgetful,
    ):
        between = _host_time(Path(folder))
        gain, cost = _gain_of_keeping(app, forgetful), _cost_of_fixed(app, fixed)
        return [*_measure(app), between, gain, cost, *_against_peer(app)]


@contextmanager
def _app(folder: str, **settings: int) -> Generator[App]:
    app = App(Settings.model_validate({"store": Path(folder) / "-".join(settings), **settings}))
    try:
        yield app
    finally:
        app.engine.close()
        app.store.close()


def _gain_of_keeping(app: App, forgetful: App) -> Row:
    """Keys and values of cross-attention, computed once or in every step."""
    jobs = [_job(app, blend) for blend in _blends(app)]
    value = ratio(lambda: _run(app, jobs), lambda: _run(forgetful, jobs))
    return Row("8 pictures of 8 blends, keys and values kept / computed in every step", value, "x")


def _host_time(folder: Path) -> Row:
    """What a server's own thread does between two forwards of eight pictures, by the wall clock."""
    app = App(Settings(store=folder / "served"))
    jobs = [_job(app, blend, _TICKS) for blend in _blends(app)]
    rows, ended, last, gaps = 2 * len(jobs), 0.0, 0, list[float]()
    runner = Runner(app.engine, _Untimed(len(jobs), lambda _area: rows), app.metrics)

    def entered(_module: object, args: Sequence[Tensor]) -> None:
        nonlocal last
        if len(args[0]) == last == rows:
            gaps.append(time.perf_counter() - ended)
        last = len(args[0])

    def left(*_: object) -> None:
        nonlocal ended
        ended = time.perf_counter()

    for job in jobs:
        app.engine.adapters.release(app.engine.load(job).result())
    app.engine.base.unet.register_forward_pre_hook(entered)
    app.engine.base.unet.register_forward_hook(left)
    try:
        _serve(runner, jobs)
    finally:
        runner.stop()
        app.store.close()
    assert gaps, "the pictures shared no forward"
    name = f"between two forwards of {len(jobs)} pictures with {len(jobs)} blends, {rows} rows"
    return Row(name, statistics.median(gaps) * 1e3, "ms", "<=2")


class _Untimed(Scheduler):
    """Fills forwards however long they take."""

    def stepped(self, plan: Plan, seconds: float) -> None:
        super().stepped(plan, 0.0)


def _serve(runner: Runner, jobs: Sequence[Job]) -> None:
    """Has the runner draw all the jobs, from their first step on together, where their adapters are resident.

    Raises:
        Exception: what a job failed with.
    """
    ends, finished = list[Done | Failed](), threading.Semaphore(0)

    def hear(event: Event) -> None:
        if isinstance(event, Done | Failed):
            ends.append(event)
            finished.release()

    for job in jobs:
        runner.submit(job, hear)
    runner.start()
    for _ in jobs:
        finished.acquire()
    for end in ends:
        if isinstance(end, Failed):
            raise end.error


def _cost_of_fixed(app: App, fixed: App) -> Row:
    """Eight pictures that are ready at once, as each server batches them."""
    jobs = [_job(app, blend) for blend in _blends(app)]
    size = DETERMINISTIC_ROWS // 2  # guided pictures of a forward
    value = ratio(
        lambda: [_run(fixed, jobs[start : start + size]) for start in range(0, len(jobs), size)],
        lambda: _run(app, jobs),
    )
    return Row("8 pictures of 8 blends, --deterministic / free", value, "x")


def _against_peer(app: App) -> list[Row]:
    """Whole pictures, ours in one batch; of adapters that act in the UNet alone, which both sides apply alike."""
    if not find_spec("peft"):
        return []
    files = {name: BUILTIN_FOLDER / "adapters" / f"{name}.safetensors" for name in ("ink", "glossy", "zib")}
    pairs = list(itertools.combinations(files, 2))
    blends = [dict.fromkeys(pairs[i % len(pairs)], _WEIGHTS[i // 3]) for i in range(8)]
    jobs = [_job(app, blend, _PEER_STEPS) for blend in blends]
    peer = Peer(BUILTIN_FOLDER / "base", files)
    ours, theirs = _pictures(app, jobs), peer.draw(jobs)
    far = max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in zip(ours, theirs, strict=True))
    assert far <= 1, f"the two sides draw different pictures, by up to {far}/255"
    assert len({picture.tobytes() for picture in ours}) == len(jobs), "two blends draw the same picture"
    wall, spent = [
        ratio(lambda: peer.draw(jobs), lambda: _pictures(app, jobs), repeats, clock)
        for repeats, clock in ((5, harness.wall), (3, harness.processor))
    ]
    return [
        Row("8 pictures of 8 blends, processor time, diffusers and PEFT / ours", spent, "x", ">=2.5"),
        Row("8 pictures of 8 blends, pictures a second, ours / diffusers and PEFT", wall, "x", ">=2.5"),
    ]


def _pictures(app: App, jobs: Sequence[Job]) -> list[np.ndarray]:
    vae = app.engine.base.vae
    return [np.asarray(decode(vae, latents)) for latents in _latents(app, jobs)]


def _blends(app: App) -> list[dict[str, float]]:
    names = [record.name for record in app.store.list_adapters(10, "").items]
    pairs = list(itertools.combinations(names, 2))
    return [dict.fromkeys(pairs[i % len(pairs)], _WEIGHTS[i // 2]) for i in range(8)]


def _measure(app: App) -> list[Row]:
    blended, plain = [_job(app, blend) for blend in _blends(app)], [_job(app, {}) for _ in range(8)]
    together = _run(app, blended)
    assert together != _run(app, plain), "the blends do nothing"
    registry = app.metrics.registry
    assert registry.get_sample_value("loramux_distinct_blends_per_forward_max") == 8
    return [
        Row(
            "8 pictures of 8 blends (2 adapters each), one batch / one after another",
            ratio(lambda: _run(app, blended), lambda: [_run(app, [job]) for job in blended]),
            "x",
            "<=1",
        ),
        Row("8 blends / no adapters, one batch", ratio(lambda: _run(app, blended), lambda: _run(app, plain)), "x"),
    ]


def _job(app: App, blend: dict[str, float], steps: int = _STEPS) -> Job:
    entries = tuple(BlendEntry(name, weight) for name, weight in blend.items())
    return app.admission.admit(GenerationRequest("a red apple", blend=entries, steps=steps, seed=1))


def _run(app: App, jobs: Sequence[Job]) -> list[bytes]:
    """The bytes of the jobs' final latents."""
    return [latents.numpy().tobytes() for latents in _latents(app, jobs)]


def _latents(app: App, jobs: Sequence[Job]) -> list[Tensor]:
    """Denoises the jobs in shared forwards; their final latents."""
    leases: list[Lease] = [app.engine.load(job).result() for job in jobs]
    for job, lease in zip(jobs, leases, strict=True):
        app.engine.begin(job, lease)
    keys = [ImageKey(job.id, 0) for job in jobs]
    results = [app.engine.step(keys) for _ in range(jobs[0].sampling.steps)][-1]
    for lease in leases:
        app.engine.adapters.release(lease)
    return [result.latents for result in results if result.latents is not None]
