"""The service that draws: messages become values, values become messages.

Takes RPCs; asks admission and the runner. It knows no tensors and raises the error trees as they are
(`statuses` gives them codes). Nothing that blocks runs on the event loop. `adapter_service` is the shelf's.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, nullcontext
from functools import partial
from types import UnionType
from typing import TYPE_CHECKING, Any

from loramux.v1 import generation_pb2, generation_service_pb2, generation_service_pb2_grpc
from loramux_server import callers, messages
from loramux_server.admission import Admission
from loramux_server.limits import Drawn
from loramux_server.metrics import Metrics
from loramux_server.repeats import Key, Repeats
from loramux_server.request_log import RequestLog
from loramux_server.requests import Done, Event, Failed, ImageReady, Job, ServerFacts, Told
from loramux_server.runner import Runner
from loramux_server.tracing import Tracing

_ADMISSIONS = 4  # requests that read the catalog at once; behind a disk that hangs more would only wait, too
_DECODERS = 2  # requests whose images are decoded at once: 0.5 GB for one of 2^25 pixels with transparency

if TYPE_CHECKING:
    import grpc.aio

    Context = grpc.aio.ServicerContext[Any, Any]


class GenerationService(generation_service_pb2_grpc.GenerationServiceServicer):
    """Draws pictures."""

    def __init__(
        self,
        admission: Admission,
        runner: Runner,
        facts: ServerFacts,
        log: RequestLog,
        metrics: Metrics,
        tracing: Tracing | None = None,
    ) -> None:
        self._admission = admission
        self._log = log
        self._admitting = nullcontext if tracing is None else partial(tracing.span, "admit")
        self._runner = runner
        self._version = facts.version
        self._admissions = ThreadPoolExecutor(_ADMISSIONS, thread_name_prefix="admission")
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="images")
        self._repeats = Repeats(generation_pb2.GenerateResponse.ByteSize, metrics)
        self._info = messages.server_info(admission.base, facts)

    async def Generate(
        self,
        request: generation_pb2.GenerateRequest,
        context: "Context",
    ) -> generation_pb2.GenerateResponse:
        """All pictures at once. Of requests with one id, those of the first."""
        request.ClearField("preview_every")  # nobody would see them
        draw = partial(self._draw, request, context)
        request_id = messages.request_id(request)
        if not request_id:
            return await draw()
        key = Key(callers.current().holder, request_id)
        digest = partial(messages.digest, request)
        return await self._repeats.answer(key, await asyncio.to_thread(digest) if _brings(request) else digest(), draw)

    async def _draw(
        self, request: generation_pb2.GenerateRequest, context: "Context"
    ) -> generation_pb2.GenerateResponse:
        job = await self._admit(request)
        response = generation_pb2.GenerateResponse(applied=messages.applied(job, self._admission.base, self._version))
        images: list[ImageReady] = []
        async with aclosing(self._run(job, context.time_remaining(), ImageReady | Done)) as story:
            async for happened in story:
                if isinstance(happened, ImageReady):
                    images.append(happened)
                elif isinstance(happened, Done):
                    response.timings.CopyFrom(messages.timings(happened.timings))
        response.images.extend(messages.image(ready) for ready in sorted(images, key=lambda ready: ready.index))
        return response

    async def GenerateStream(
        self,
        request: generation_pb2.GenerateRequest,
        context: "Context",
    ) -> AsyncIterator[generation_pb2.GenerateEvent]:
        """What happens, as it happens."""
        job = await self._admit(request)
        async with aclosing(self._run(job, context.time_remaining(), Told)) as story:
            async for happened in story:
                yield messages.event(happened, self._admission.base, self._version)

    async def GetServerInfo(
        self,
        request: generation_service_pb2.GetServerInfoRequest,
        context: "Context",
    ) -> generation_pb2.ServerInfo:
        """What this server is and can do."""
        return self._info

    def close(self) -> None:
        """Ends the threads that admit requests."""
        for threads in (self._admissions, self._decoders):
            threads.shutdown(wait=True)

    async def _admit(self, request: generation_pb2.GenerateRequest) -> Job:
        """On threads that nothing else of the server needs: a disk may hang under the catalog. On few where images are
        decoded: that takes long, and much memory each."""
        asked = messages.generation_request(request)
        threads = self._decoders if _brings(request) else self._admissions
        with self._admitting():
            return await asyncio.get_running_loop().run_in_executor(threads, self._admission.admit, asked)

    async def _run(self, job: Job, seconds_left: float | None, told: UnionType) -> AsyncGenerator[Told, None]:
        """Events of the job up to its end, of the kinds that are to be told; leaving early (cancel, deadline,
        disconnect) frees its rows.

        Raises:
            TooLate: where the end cannot come in seconds_left.
            OverLimit: where the caller has used up what its token allows.
        """
        meter = callers.current().meter
        drawing = nullcontext(Drawn(job)) if meter is None else meter.drawing(job)
        with self._log.following(job) as heard, drawing as drawn:
            async with aclosing(self._tell(job, drawn, seconds_left, told)) as story:
                async for happened in story:
                    heard.hear(happened)
                    yield happened

    async def _tell(
        self, job: Job, drawn: Drawn, seconds_left: float | None, told: UnionType
    ) -> AsyncGenerator[Told, None]:
        """The loop is woken for what is told alone: it would take the interpreter from the threads that draw."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        awaited = told | Failed

        def hear(happened: Event) -> None:
            drawn.hear(happened)
            if isinstance(happened, awaited):
                loop.call_soon_threadsafe(events.put_nowait, happened)

        self._runner.submit(job, hear, seconds_left)
        try:
            while True:
                happened = await events.get()
                if isinstance(happened, Failed):
                    raise happened.error
                yield happened
                if isinstance(happened, Done):
                    return
        finally:
            self._runner.cancel(job.id)


def _brings(request: generation_pb2.GenerateRequest) -> bool:
    """Whether it is large, and long to decode."""
    return request.HasField("image") or request.HasField("mask")
