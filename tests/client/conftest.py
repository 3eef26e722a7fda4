"""A server that answers from a script and remembers what it was asked, and both clients on it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # pyright: ignore[reportMissingTypeStubs]
from grpc_status import rpc_status

from loramux.v1 import (
    adapter_pb2,
    adapter_service_pb2,
    adapter_service_pb2_grpc,
    generation_pb2,
    generation_service_pb2_grpc,
)
from loramux_client import AsyncClient, Client

PNG = b"\x89PNG picture"


@dataclass
class FakeServer:
    """What the servicers do and what they saw."""

    target: str = ""
    requests: list[Any] = field(default_factory=list[Any])
    seconds_left: list[float] = field(default_factory=list[float])
    metadata: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    chunks: list[bytes] = field(default_factory=list[bytes])
    names: list[str] = field(default_factory=lambda: [f"a{i}" for i in range(7)])
    page: int = 3
    padding: bytes = b""
    failure: tuple[grpc.StatusCode, str, list[Message]] | None = None
    failures_left: int = -1
    refuse_upload_after: int | None = None
    hang_in_upload: bool = False
    uploads: dict[str, Any] = field(default_factory=dict[str, Any])
    file: bytes = b""
    file_digest: str = ""
    break_download_at: int = -1
    steps_before_hanging: int | None = None
    steps_before_failing: int | None = None
    started: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def fail(
        self, code: grpc.StatusCode, message: str, *details: Message, times: int = -1, told_s: float | None = None
    ) -> None:
        """told_s: seconds after which to try again, as RetryInfo."""
        told = [] if told_s is None else [error_details_pb2.RetryInfo()]
        for retry in told:
            retry.retry_delay.FromMicroseconds(round((told_s or 0) * 1e6))
        self.failure, self.failures_left = (code, message, [*details, *told]), times

    async def check(self, request: Any, context: Any) -> None:
        """Remembers the request and its metadata, and fails it where the script says so."""
        self.requests.append(request)
        self.seconds_left.append(context.time_remaining() or 0.0)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        if self.failure is not None and self.failures_left != 0:
            self.failures_left -= 1
            await refuse(context, *self.failure)

    async def hang(self) -> None:
        """Waits for the cancellation that the test is about."""
        self.started.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def refuse(context: Any, code: grpc.StatusCode, message: str, details: list[Message]) -> None:
    packed = [any_pb2.Any() for _ in details]
    for box, detail in zip(packed, details, strict=True):
        box.Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    if details:
        await context.abort_with_status(rpc_status.to_status(status))  # pyright: ignore[reportUnknownMemberType]
    await context.abort(code, message)


def applied(request: generation_pb2.GenerateRequest) -> generation_pb2.Applied:
    return generation_pb2.Applied(
        adapters=[
            generation_pb2.AppliedAdapter(
                adapter=e.adapter.partition("@")[0],
                version=2,
                digest="d" * 64,
                weight=e.weight,
                kind=version(e.adapter, 2).kind,
                trigger=version(e.adapter, 2).embedding.trigger,
            )
            for e in request.blend.entries
        ],
        seed=request.seed,
        sampler=generation_pb2.SAMPLER_EULER_ANCESTRAL,
        steps=request.steps or 20,
        guidance_scale=3.0,
        width=64,
        height=64,
        base_digest="b" * 64,
        server_version="1.2.3",
        strength=request.strength if request.HasField("image") else None,
        image_sha256=sha256(request.image).hexdigest() if request.HasField("image") else "",
        mask_sha256=sha256(request.mask).hexdigest() if request.HasField("mask") else "",
        mask_blur=request.mask_blur,
        size_conditioning=request.size_conditioning if request.HasField("size_conditioning") else None,
    )


def image(request: generation_pb2.GenerateRequest, index: int, padding: bytes = b"") -> generation_pb2.Image:
    return generation_pb2.Image(
        index=index,
        seed=request.seed + index,
        format=generation_pb2.IMAGE_FORMAT_PNG,
        width=64,
        height=64,
        data=PNG + bytes([index]) + padding,
    )


TIMINGS = generation_pb2.Timings(queue_seconds=1, denoise_seconds=2, decode_seconds=3, total_seconds=6)


class FakeGeneration(generation_service_pb2_grpc.GenerationServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self.server = server

    async def Generate(self, request: Any, context: Any) -> generation_pb2.GenerateResponse:
        await self.server.check(request, context)
        if self.server.steps_before_hanging is not None:
            await self.server.hang()
        count = request.num_images or 1
        return generation_pb2.GenerateResponse(
            images=[image(request, i, self.server.padding) for i in range(count)],
            applied=applied(request),
            timings=TIMINGS,
        )

    async def GenerateStream(self, request: Any, context: Any) -> AsyncIterator[generation_pb2.GenerateEvent]:
        event = generation_pb2.GenerateEvent
        await self.server.check(request, context)
        yield event(queued=event.Queued(position=4))
        yield event(started=event.Started(applied=applied(request)))
        yield event()  # something a newer server tells
        for step in range(1, 4):
            yield event(step=event.Step(image_index=0, step=step, total=3))
            if step == self.server.steps_before_failing:
                assert self.server.failure is not None
                await refuse(context, *self.server.failure)
            if step == self.server.steps_before_hanging:
                await self.server.hang()
        for index in range(request.num_images or 1):
            yield event(image=image(request, index))
        yield event(done=event.Done(timings=TIMINGS))

    async def GetServerInfo(self, request: Any, context: Any) -> generation_pb2.ServerInfo:
        await self.server.check(request, context)
        return generation_pb2.ServerInfo(
            server_version="1.2.3",
            base="tiny",
            device="cpu",
            family="sdxl",
            distilled="lcm",
            samplers=[generation_pb2.SAMPLER_DDIM, 99],  # pyright: ignore[reportArgumentType]
            sampler_infos=[
                generation_pb2.SamplerInfo(
                    sampler=generation_pb2.SAMPLER_DDIM,
                    sigma_schedules=[0, 1, 9],  # pyright: ignore[reportArgumentType]
                    takes_timesteps=True,
                )
            ],
            image_formats=[generation_pb2.IMAGE_FORMAT_PNG, 99],  # pyright: ignore[reportArgumentType]
            library_versions={"torch": "2"},
            takes_size_conditioning=True,
            limits=generation_pb2.Limits(
                max_side=512, max_image_bytes=99, max_image_pixels=9, max_weight=16, max_seed=5
            ),
            inpainting=True,
            text_widths={"text_encoder": 24, "text_encoder_2": 40},
            defaults=generation_pb2.Defaults(sampler=generation_pb2.SAMPLER_DPMPP_2M, steps=20),
        )


def adapter(name: str) -> adapter_pb2.Adapter:
    made = adapter_pb2.Adapter(name=name, latest_version=version(name, 2), trigger_words=["w"])
    made.labels["k"] = "v"
    made.create_time.FromSeconds(1_000_000_000)
    made.licence, made.base_model, made.etag, made.trigger_source = "CC0", "v1-5", "e-1", "ss_dataset_dirs"
    made.aliases["prod"] = 1
    made.tier = adapter_pb2.TIER_HOST
    made.pins.add(reference=name, tier=adapter_pb2.TIER_DEVICE)
    made.pins.add(reference=f"{name}@prod", tier=adapter_pb2.TIER_HOST)
    return made


def embedding(trigger: str) -> adapter_pb2.Embedding:
    return adapter_pb2.Embedding(trigger=trigger, vectors=4, widths={"text_encoder": 24, "text_encoder_2": 40})


def version(name: str, number: int) -> adapter_pb2.AdapterVersion:
    """Whose name begins with "emb" is an embedding."""
    made = adapter_pb2.AdapterVersion(
        adapter=name,
        number=number,
        digest="d" * 64,
        size_bytes=3000,
        kind=adapter_pb2.ADAPTER_KIND_LORA,
        layout="tiny",
        rank=8,
        device_bytes=5000,
        notes=adapter_pb2.FileNotes(
            trigger_words=["w"], trigger_source="ss_dataset_dirs", licence="CC0", base_model="b"
        ),
    )
    if name.startswith("emb"):
        made.kind, made.rank = adapter_pb2.ADAPTER_KIND_EMBEDDING, 0
        made.embedding.CopyFrom(embedding("<cat>"))
    return made


class FakeAdapters(adapter_service_pb2_grpc.AdapterServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self.server = server

    async def UploadAdapter(self, request_iterator: Any, context: Any) -> Any:
        spec = None
        async for request in request_iterator:
            if spec is None:
                spec = request.spec
                await self.server.check(spec, context)
                continue
            self.server.chunks.append(request.chunk)
            if self.server.hang_in_upload:
                await self.server.hang()
            if len(self.server.chunks) == self.server.refuse_upload_after:
                await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too large", [])
        assert spec is not None
        report = adapter_pb2.AcceptReport(
            family="kohya",
            layout="tiny",
            evidence=["shapes"],
            matched=[
                adapter_pb2.MatchedModule(
                    module="m", kind="linear", rank=8, scale=1, algorithm="loha", operation="rows", axis="output"
                )
            ],
            ignored=[adapter_pb2.IgnoredKey(key="k", reason="r")],
            warnings=["look"],
        )
        if spec.HasField("trigger"):
            report.ClearField("matched")
            report.embedding.CopyFrom(embedding(spec.trigger))
        response = adapter_service_pb2.UploadAdapterResponse(report=report)
        if not spec.validate_only:
            response.version.CopyFrom(version(spec.name, 1))
            response.created = True
        return response

    async def GetUpload(self, request: Any, context: Any) -> adapter_service_pb2.UploadState:
        known = self.server.uploads.get(request.upload_id)
        if known is None:
            await refuse(context, grpc.StatusCode.NOT_FOUND, "no upload", [])
        assert known is not None
        return known

    async def AbortUpload(self, request: Any, context: Any) -> adapter_service_pb2.AbortUploadResponse:
        await self.server.check(request, context)
        return adapter_service_pb2.AbortUploadResponse()

    async def WriteUploadChunk(self, request: Any, context: Any) -> adapter_service_pb2.WriteUploadChunkResponse:
        raise NotImplementedError  # our clients stream

    async def DownloadAdapter(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self.server.check(request, context)
        made = version(request.adapter.partition("@")[0], 2)
        made.size_bytes, made.blob_digest = len(self.server.file), self.server.file_digest
        yield adapter_service_pb2.DownloadAdapterResponse(version=made)
        for start in range(request.offset, len(self.server.file), 1000):
            if start == self.server.break_download_at:
                self.server.break_download_at = -1
                await refuse(context, grpc.StatusCode.UNAVAILABLE, "going down", [])
            yield adapter_service_pb2.DownloadAdapterResponse(chunk=self.server.file[start : start + 1000])

    async def GetAdapter(self, request: Any, context: Any) -> adapter_pb2.Adapter:
        await self.server.check(request, context)
        name, at, _ = request.name.partition("@")
        made = adapter(name)
        if at:
            made.asked_version.CopyFrom(version(name, 1))
        return made

    async def ListAdapters(self, request: Any, context: Any) -> Any:
        await self.server.check(request, context)
        items, token = self._page(self.server.names, request.page_token)
        return adapter_service_pb2.ListAdaptersResponse(
            adapters=[adapter(name) for name in items], next_page_token=token
        )

    async def ListVersions(self, request: Any, context: Any) -> Any:
        await self.server.check(request, context)
        items, token = self._page(list(range(5, 0, -1)), request.page_token)
        return adapter_service_pb2.ListVersionsResponse(
            versions=[version(request.name, number) for number in items], next_page_token=token
        )

    async def DeleteAdapter(self, request: Any, context: Any) -> adapter_pb2.Adapter:
        await self.server.check(request, context)
        return adapter(request.name)

    async def UpdateAdapter(self, request: Any, context: Any) -> adapter_pb2.Adapter:
        await self.server.check(request, context)
        return adapter(request.adapter.name)

    async def UndeleteAdapter(self, request: Any, context: Any) -> adapter_pb2.Adapter:
        await self.server.check(request, context)
        return adapter(request.name)

    async def PreloadAdapter(self, request: Any, context: Any) -> Any:
        await self.server.check(request, context)
        made = version(request.adapter.partition("@")[0], 2)
        return adapter_service_pb2.PreloadAdapterResponse(version=made, tier=request.tier)

    async def PinAdapter(self, request: Any, context: Any) -> adapter_pb2.Adapter:
        await self.server.check(request, context)
        return adapter(request.adapter.partition("@")[0])

    async def UnpinAdapter(self, request: Any, context: Any) -> adapter_pb2.Adapter:
        await self.server.check(request, context)
        return adapter(request.adapter.partition("@")[0])

    async def ListAuditEvents(self, request: Any, context: Any) -> Any:
        await self.server.check(request, context)
        items, token = self._page(list(range(5, 0, -1)), request.page_token)
        events = [
            adapter_pb2.AuditEvent(who="ann", action="upload", adapter=f"a{at}", version=at % 2, detail="d")
            for at in items
        ]
        return adapter_service_pb2.ListAuditEventsResponse(events=events, next_page_token=token)

    def _page(self, items: list[Any], token: str) -> tuple[list[Any], str]:
        start = int(token or 0)
        end = start + self.server.page
        return items[start:end], str(end) if end < len(items) else ""


def health_handler(server: FakeServer) -> Any:
    async def check(request: bytes, context: Any) -> bytes:
        await server.check(request, context)
        return {b"": b"\x08\x01", b"\x0a\x04down": b"\x08\x02"}[request]

    method = grpc.unary_unary_rpc_method_handler
    return grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": method(check)})


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    fake = FakeServer()
    running = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    # The generated *_pb2_grpc.py carry no types.
    for module, servicer in (
        (generation_service_pb2_grpc, FakeGeneration(fake)),
        (adapter_service_pb2_grpc, FakeAdapters(fake)),
    ):
        base = type(servicer).__mro__[1].__name__
        getattr(module, f"add_{base}_to_server")(servicer, running)
    running.add_generic_rpc_handlers((health_handler(fake),))
    fake.target = f"127.0.0.1:{running.add_insecure_port('127.0.0.1:0')}"
    await running.start()
    yield fake
    await running.stop(None)


Ask = Callable[..., Any]


@pytest.fixture(params=["sync", "aio"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of the client."""
    return request.param


@pytest.fixture
async def ask(connect: Callable[..., Any]) -> AsyncIterator[Ask]:
    """Calls a method by name on one of the clients; lists what an iterator gives."""
    async with connect() as ask:
        yield ask


@pytest.fixture
def connect(kind: str, server: FakeServer) -> Callable[..., Any]:
    """Makes an `ask` of a client with options."""
    return partial(asking, kind, server.target)


@asynccontextmanager
async def asking(kind: str, target: str, **options: Any) -> AsyncGenerator[Ask]:
    if kind == "sync":
        with Client(target, **options) as client:

            def call(method: str, *args: Any, **kwargs: Any) -> Any:
                result = getattr(client, method)(*args, **kwargs)
                return list(result) if inspect.isgenerator(result) else result

            yield lambda *args, **kwargs: asyncio.to_thread(call, *args, **kwargs)
        return
    async with AsyncClient(target, **options) as client:

        async def acall(method: str, *args: Any, **kwargs: Any) -> Any:
            result = getattr(client, method)(*args, **kwargs)
            if inspect.isasyncgen(result):
                return [item async for item in result]
            return await result

        yield acall
