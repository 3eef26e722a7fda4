"""One line of the log for each request that was admitted: what was asked, how it ended, how long it took.

Takes a job and what its client hears; writes the line when the request has ended. It knows no queue and no messages.
Prompts are left out unless the operator asked for them.
"""

import asyncio
import time
from collections.abc import Generator
from contextlib import contextmanager

import structlog

from loramux_server.callers import current
from loramux_server.requests import Done, Job, Told, Weighted

_log = structlog.stdlib.get_logger(__name__)


class Heard:
    """What is known of a request's end so far."""

    def __init__(self) -> None:
        self.done: Done | None = None

    def hear(self, happened: Told) -> None:
        """One event more."""
        if isinstance(happened, Done):
            self.done = happened


@contextmanager
def logging_request(job: Job, prompts: bool) -> Generator[Heard]:
    """While a request is answered. outcome: done, cancelled, or the name of the error it ended with."""
    heard, started, outcome = Heard(), time.monotonic(), "cancelled"
    try:
        yield heard
        outcome = "done" if heard.done is not None else "cancelled"
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except Exception as error:
        outcome = type(error).__name__
        raise
    finally:
        timings = heard.done.timings if heard.done is not None else None
        _log.info(
            "request",
            request=job.id,
            outcome=outcome,
            caller=current().holder,
            images=job.num_images,
            width=job.width,
            height=job.height,
            sampler=job.sampling.sampler.value,
            steps=job.sampling.steps,
            seed=job.seed,
            blend=[_told(weighted) for weighted in job.blend],
            seconds=round(time.monotonic() - started, 3),
            queue_seconds=None if timings is None else round(timings.queue, 3),
            denoise_seconds=None if timings is None else round(timings.denoise, 3),
            decode_seconds=None if timings is None else round(timings.decode, 3),
            **({"prompt": job.prompt, "negative_prompt": job.negative_prompt} if prompts else {}),
        )


def _told(weighted: Weighted) -> str:
    version = weighted.version
    return f"{version.adapter}@{version.number}:{version.digest[:12]}*{weighted.weight:g}"
