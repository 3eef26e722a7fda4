"""A generation service whose jobs a test draws by hand: no base, no engine, no network."""

import asyncio
from itertools import count
from types import SimpleNamespace
from typing import Any

from loramux_server.admission import BaseFacts
from loramux_server.metrics import Metrics
from loramux_server.request_log import RequestLog
from loramux_server.requests import (
    Done,
    Failed,
    GenerationRequest,
    ImageFormat,
    ImageReady,
    Job,
    Listener,
    Output,
    Priority,
    Queued,
    Sampler,
    Sampling,
    ServerFacts,
    Stepped,
    TextMode,
    Timings,
)
from loramux_server.service import GenerationService

BASE = BaseFacts("x", "d", "l", "ld", 64, 8, 64, 512, 3.0, 512)
FACTS = ServerFacts("1", "cpu", 1, (), ())


class Taken:
    """A job that the runner took in, and who listens to it. outcome: done, failed or cancelled, empty while it runs."""

    def __init__(self, job: Job, listener: Listener) -> None:
        self.job, self.tell = job, listener
        self.outcome = ""

    def step(self, *steps: int) -> None:
        """Of the first picture."""
        for step in steps:
            self.tell(Stepped(0, step, self.job.sampling.steps))

    def finish(self) -> None:
        """All pictures; their bytes are no others'."""
        self.outcome = "done"
        for index in range(self.job.num_images):
            data = f"{self.job.id} {self.job.seed + index}".encode()
            self.tell(ImageReady(index, self.job.seed + index, 64, 64, ImageFormat.PNG, data))
        self.tell(Done(Timings(1.0, 1.0, 1.0, 3.0)))

    def fail(self, error: Exception) -> None:
        self.outcome = "failed"
        self.tell(Failed(error))


class ByHand:
    """Stands for admission and for the runner of a service. refusals: what the runner says to the next jobs."""

    base = BASE

    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self.refusals: list[Exception] = []
        self.metrics = Metrics()
        self._numbers = count()
        self.service = GenerationService(self, self, FACTS, RequestLog(self.metrics), self.metrics)  # type: ignore[arg-type]

    def admit(self, asked: GenerationRequest) -> Job:
        """Where no seed is given, every job has another."""
        number = next(self._numbers)
        seed = 1000 + number if asked.seed is None else asked.seed
        sampling = Sampling(Sampler.EULER, 10, guidance_scale=1.0)
        return Job(
            f"job-{number}", asked.prompt, "", TextMode(), (), None, sampling, seed, asked.num_images or 1, 1000, 500,
            Output(), Priority.NORMAL,
        )  # fmt: skip

    def submit(self, job: Job, listener: Listener, seconds_left: float | None = None) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.taken.append(Taken(job, listener))
        listener(Queued(0))

    def cancel(self, job_id: str) -> None:
        for taken in self.taken:
            if taken.job.id == job_id and not taken.outcome:
                taken.outcome = "cancelled"

    async def until_taken(self, count: int) -> Taken:
        """The last of so many jobs, once it is taken in. Turns of the loop and of admission's thread are waited for."""
        async with asyncio.timeout(10):
            while len(self.taken) < count:
                await asyncio.sleep(0)
        return self.taken[count - 1]


def context(seconds: float | None = None) -> Any:
    """Of a call that ends in so many seconds."""
    return SimpleNamespace(time_remaining=lambda: seconds)
