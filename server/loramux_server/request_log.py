"""What is kept of each request that was admitted: a line of the log, times in histograms, spans.

Takes a job and what its client hears; writes when the request has ended. It knows no queue and no messages. Prompts are
left out unless the operator asked for them.
"""

import asyncio
import time
from collections.abc import Generator
from contextlib import contextmanager

import structlog

from loramux_server.callers import current
from loramux_server.calls import brought
from loramux_server.metrics import Metrics
from loramux_server.requests import Done, Job, Timings, Told
from loramux_server.tracing import Tracing, exemplar, named

_PHASES = ("load", "encode", "denoise", "decode")
_PARTS = ("queue", *_PHASES)
_log = structlog.stdlib.get_logger(__name__)


class Heard:
    """What is known of a request's end so far."""

    def __init__(self) -> None:
        self.done: Done | None = None

    def hear(self, happened: Told) -> None:
        """One event more."""
        if isinstance(happened, Done):
            self.done = happened


class RequestLog:
    """prompts: whether they are logged."""

    def __init__(self, metrics: Metrics, tracing: Tracing | None = None, *, prompts: bool = False) -> None:
        self._metrics, self._tracing, self._prompts = metrics, tracing, prompts

    @contextmanager
    def following(self, job: Job) -> Generator[Heard]:
        """While a request is answered. Its outcome is done, cancelled, or the name of the error it ended with."""
        heard, started, outcome = Heard(), time.monotonic(), "cancelled"
        brought(job.id)
        try:
            yield heard
            outcome = "done" if heard.done is not None else "cancelled"
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as error:
            outcome = type(error).__name__
            raise
        finally:
            seconds, timings = time.monotonic() - started, None if heard.done is None else heard.done.timings
            if timings is not None:
                self._observe(job, timings)
            self._write(job, outcome, seconds, timings)
            if self._tracing is not None:
                self._tracing.request(job, outcome, seconds, timings)

    def _observe(self, job: Job, timings: Timings) -> None:
        metrics, points_at = self._metrics, exemplar(job.id)
        metrics.queue_seconds.labels(job.priority).observe(timings.queue, points_at)
        metrics.request_seconds.observe(timings.total, points_at)
        for phase in _PHASES:
            metrics.phase_seconds.labels(phase).observe(getattr(timings, phase), points_at)

    def _write(self, job: Job, outcome: str, seconds: float, timings: Timings | None) -> None:
        _log.info(
            "request",
            request_id=job.id,
            outcome=outcome,
            caller=current().holder,
            images=job.num_images,
            width=job.width,
            height=job.height,
            sampler=job.sampling.sampler.value,
            steps=job.sampling.steps,
            seed=job.seed,
            blend=[named(weighted) for weighted in job.blend],
            seconds=round(seconds, 3),
            **{f"{part}_seconds": None if timings is None else round(getattr(timings, part), 3) for part in _PARTS},
            **({"prompt": job.prompt, "negative_prompt": job.negative_prompt} if self._prompts else {}),
        )
