"""The one thread that turns jobs into pictures: plan, step, settle.

Takes jobs and listeners; tells each listener what happens. It joins the scheduler and the engine, which do not
know each other, and knows no gRPC. Loading adapters, encoding images that requests bring and decoding pictures happen
on other threads, off the tick's way.
"""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from loramux_server.engine.device_tier import Lease
from loramux_server.engine.engine import Engine, StepResult
from loramux_server.engine.image_latents import ImageLatents
from loramux_server.errors import Draining, OutOfMemory, PictureFailed
from loramux_server.metrics import Metrics
from loramux_server.requests import (
    Done,
    Event,
    Failed,
    ImageKey,
    ImageReady,
    Job,
    Listener,
    Preview,
    Queued,
    Started,
    Stepped,
    Timings,
)
from loramux_server.scheduler import Item, Plan, Scheduler

_log = logging.getLogger(__name__)

_BEGIN = 4  # jobs whose prompts are encoded between two ticks: running pictures must not stall behind a crowd


@dataclass(slots=True)
class _Running:
    """A job between arrival and end; times are monotonic seconds, 0 where it is not there yet.

    encoding: of the image it starts from, if any; awaited: how many of loading and encoding are not done; loaded: when
    they were and the tick thread took it up; encoded: seconds that its texts took.
    """

    job: Job
    listener: Listener
    keys: tuple[ImageKey, ...]
    arrived: float
    loading: "Future[Lease] | None" = None
    encoding: "Future[ImageLatents] | None" = None
    awaited: int = 1
    lease: Lease | None = None
    loaded: float = 0.0
    encoded: float = 0.0
    started: float = 0.0
    denoised: float = 0.0
    stepping: set[ImageKey] = field(default_factory=lambda: set[ImageKey]())
    undelivered: int = 0

    @property
    def stage(self) -> str:
        """What it is at."""
        if self.denoised:
            return "decode"
        return "denoise" if self.started else "queue"


class Runner:
    """Runs jobs to their end. `submit`, `cancel`, `turn_away`, `drain` and `stop` may be called from any thread."""

    def __init__(self, engine: Engine, scheduler: Scheduler, metrics: Metrics) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._metrics = metrics
        self._lock = threading.Condition()
        self._jobs: dict[str, _Running] = {}
        self._loaded: list[str] = []
        self._ending: list[tuple[str, Event | None, str]] = []
        self._draining = False
        self._stopping = False
        self._beat = time.monotonic()
        self._vae = ThreadPoolExecutor(1, thread_name_prefix="vae")
        self._thread = threading.Thread(target=self._run, name="runner", daemon=True)

    def start(self) -> None:
        """Begins to tick."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the tick thread runs."""
        return self._thread.is_alive()

    @property
    def silent_seconds(self) -> float:
        """Since the tick thread last came round: at most a second where it idles, the length of a forward else."""
        return time.monotonic() - self._beat

    def submit(self, job: Job, listener: Listener, seconds_left: float | None = None) -> None:
        """Takes a job in; its listener hears Queued, Started, Stepped, ImageReady and Done, or Failed.

        seconds_left: until nobody wants its pictures any more.

        Raises:
            Busy: the queue is full.
            TooLate: it cannot be done in seconds_left.
            Draining: the server is stopping.
        """
        scale = self._engine.base.latent_scale
        keys = tuple(ImageKey(job.id, index) for index in range(job.num_images))
        bucket = (job.height // scale, job.width // scale)
        running = _Running(job, listener, keys, time.monotonic(), stepping=set(keys), undelivered=len(keys))
        with self._lock:
            if self._draining:
                raise Draining("the server is stopping and takes no new requests")
            steps = job.sampling.evaluations
            items = [Item(key, bucket, 1 + job.guided, steps, job.priority) for key in keys]
            position = self._scheduler.submit(items, seconds_left)
            self._metrics.admitted.labels(job.priority).inc()
            self._metrics.adapters.count({weighted.version.adapter for weighted in job.blend})
            running.loading = loading = self._engine.load(job)
            waited: list[Future[Any]] = [loading]
            if job.source is not None:
                running.encoding = self._vae.submit(self._engine.encode, job, job.source)
                waited.append(running.encoding)
            running.awaited = len(waited)
            self._jobs[job.id] = running
            self._gauge()
        listener(Queued(position))
        for future in waited:
            future.add_done_callback(partial(self._on_done, running))

    def cancel(self, job_id: str) -> None:
        """Frees the job's rows at the next tick; a job that has ended is left alone."""
        self._end_soon(job_id, None, "cancelled")

    def turn_away(self) -> None:
        """Takes nothing new from now on; never waits. A submission that has been let in stays in."""
        self._draining = True

    def drain(self, seconds: float) -> bool:
        """Takes nothing new and waits until all jobs ended; False where `seconds` were not enough."""
        self.turn_away()
        with self._lock:
            return self._lock.wait_for(lambda: not self._jobs, timeout=seconds)

    def stop(self) -> None:
        """Ends the thread, which fails what is left."""
        with self._lock:
            self._draining = self._stopping = True
            self._lock.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        self._vae.shutdown(wait=True)
        self._engine.close()

    def _run(self) -> None:
        self._metrics.engine_up.set(1)
        try:
            while not self._stopping:
                self._beat = time.monotonic()
                if not self._tick():
                    with self._lock:
                        self._lock.wait_for(lambda: self._stopping or self._loaded or self._ending, timeout=1.0)
        except Exception:
            _log.exception("the runner stopped")
        finally:
            self._metrics.engine_up.set(0)
            with self._lock:
                self._draining = True
            self._fail_all(set(self._jobs), Draining("the server stopped"))

    def _tick(self) -> bool:
        """One iteration; False where nothing could step."""
        self._end_asked()
        self._begin_loaded()
        began = time.monotonic()
        with self._lock:
            plan = self._scheduler.plan()
        if plan is None:
            return False
        started = time.monotonic()
        self._note_first_steps(plan.keys, started)
        try:
            results = self._engine.step(plan.keys)
        except Exception:  # the engine fails single pictures itself: this is a fault in it
            _log.exception("a forward failed")
            self._fail_all({key.job for key in plan.keys}, PictureFailed("the forward of this picture failed"))
            return True
        self._settle(plan, results, time.monotonic() - started)
        self._metrics.tick_seconds.observe(time.monotonic() - began)
        return True

    def _note_first_steps(self, keys: Sequence[ImageKey], now: float) -> None:
        for job_id in {key.job for key in keys}:
            running = self._jobs.get(job_id)
            if running is not None and running.started == 0:
                running.started = now

    def _settle(self, plan: Plan, results: list[StepResult], seconds: float) -> None:
        with self._lock:
            self._scheduler.stepped(plan, seconds)
            self._metrics.speed.set(self._scheduler.speed)
            self._scheduler.finish(r.key for r in results if r.latents is not None)
        for result in results:
            running = self._jobs.get(result.key.job)
            if running is None:
                continue  # another picture of the job failed in this tick
            if result.error is not None:
                self._fail(result.key.job, result.error)
            else:
                running.listener(Stepped(result.key.index, result.step, result.total))
                if result.foreseen is not None:
                    self._vae.submit(self._preview, running, result)
                if result.latents is not None:
                    self._finish(running, result)

    def _finish(self, running: _Running, result: StepResult) -> None:
        """A picture made its last step: hand it to the decoder, and its rows back after the last one."""
        running.stepping.discard(result.key)
        if not running.stepping:
            running.denoised = time.monotonic()
            self._release(running)
        self._vae.submit(self._deliver, running, result)

    def _preview(self, running: _Running, result: StepResult) -> None:
        """On the VAE's thread; a preview that fails is no reason to fail the picture."""
        if running.job.id not in self._jobs:
            return
        try:
            assert result.foreseen is not None
            running.listener(Preview(result.key.index, result.step, self._engine.preview(result.foreseen)))
        except Exception:
            _log.exception("a preview could not be made")

    def _deliver(self, running: _Running, result: StepResult) -> None:
        """On the VAE's thread: encode the picture, tell of it, and of the end after the last one."""
        job = running.job
        if job.id not in self._jobs:
            return
        try:
            assert result.latents is not None
            data = self._engine.deliver(job, result.key.index, result.latents)
        except PictureFailed as error:
            self._note_memory(error, "decode")
            self._end_soon(job.id, Failed(error), "failed")
            return
        except Exception:
            _log.exception("a picture could not be decoded")
            error = PictureFailed(f"picture {result.key.index} could not be decoded")
            self._end_soon(job.id, Failed(error), "failed")
            return
        self._metrics.images.inc()
        index = result.key.index
        running.listener(ImageReady(index, job.seed + index, job.width, job.height, job.output.format, data))
        with self._lock:
            self._scheduler.remove([result.key])
        running.undelivered -= 1
        if running.undelivered == 0:
            self._end(running, Done(self._timings(running)), "ok")

    def _timings(self, running: _Running) -> Timings:
        now = time.monotonic()
        return Timings(
            queue=running.started - running.arrived,
            denoise=running.denoised - running.started,
            decode=now - running.denoised,
            total=now - running.arrived,
            load=running.loaded - running.arrived,
            encode=running.encoded,
        )

    def _note_memory(self, error: Exception, stage: str) -> None:
        if isinstance(error, OutOfMemory):
            self._metrics.out_of_memory.labels(stage).inc()

    def _on_done(self, running: _Running, _future: "Future[Any]") -> None:
        """Loading or encoding ended, one way or another."""
        with self._lock:
            running.awaited -= 1
            if running.awaited == 0:
                self._loaded.append(running.job.id)
                self._lock.notify_all()

    def _begin_loaded(self) -> None:
        with self._lock:
            loaded, self._loaded = self._loaded[:_BEGIN], self._loaded[_BEGIN:]
        for job_id in loaded:
            running = self._jobs.get(job_id)
            if running is not None:
                self._begin(running)

    def _begin(self, running: _Running) -> None:
        loading, running.loading = running.loading, None
        encoding, running.encoding = running.encoding, None
        assert loading is not None
        try:
            running.lease = loading.result()
            start = None if encoding is None else encoding.result()
            running.listener(Started(running.job))
            running.loaded = time.monotonic()
            self._engine.begin(running.job, running.lease, start)
            running.encoded = time.monotonic() - running.loaded
        except Exception as error:
            self._note_memory(error, "load")
            self._fail(running.job.id, error)
            return
        with self._lock:
            self._scheduler.ready(running.keys)
            self._gauge()

    def _end_soon(self, job_id: str, event: Event | None, outcome: str) -> None:
        """From any thread: has the tick thread end a job, since only that one may touch the engine's pictures."""
        with self._lock:
            if job_id in self._jobs:
                self._ending.append((job_id, event, outcome))
                self._lock.notify_all()

    def _end_asked(self) -> None:
        with self._lock:
            ending, self._ending = self._ending, []
        for job_id, event, outcome in ending:
            running = self._jobs.get(job_id)
            if running is not None:
                self._drop(running)
                self._end(running, event, outcome)

    def _fail_all(self, job_ids: set[str], error: Exception) -> None:
        for job_id in job_ids:
            self._fail(job_id, error)

    def _fail(self, job_id: str, error: Exception) -> None:
        running = self._jobs.get(job_id)
        if running is not None:
            self._drop(running)
            self._end(running, Failed(error), "failed")

    def _drop(self, running: _Running) -> None:
        """Takes a job's pictures out of the queue and the engine."""
        with self._lock:
            self._scheduler.remove(running.keys)
        self._engine.drop(running.keys)
        if running.loading is not None and not running.loading.cancel():
            running.loading.add_done_callback(self._release_late)
        if running.encoding is not None:
            running.encoding.cancel()
        self._release(running)

    def _release(self, running: _Running) -> None:
        if running.lease is not None:
            self._engine.adapters.release(running.lease)
            running.lease = None

    def _release_late(self, loading: "Future[Lease]") -> None:
        """A lease that came after its job had ended."""
        if loading.exception() is None:
            self._engine.adapters.release(loading.result())

    def _end(self, running: _Running, event: Event | None, outcome: str) -> None:
        with self._lock:
            if self._jobs.pop(running.job.id, None) is None:
                return
            self._gauge()
            self._lock.notify_all()
        self._metrics.requests.labels(outcome).inc()
        if outcome == "cancelled":
            self._metrics.cancelled.labels(running.stage).inc()
        if event is not None:
            running.listener(event)

    def _gauge(self) -> None:
        self._metrics.in_flight.set(len(self._jobs))
        self._metrics.waiting.set(self._scheduler.waiting)
        self._metrics.running.set(self._scheduler.running)
