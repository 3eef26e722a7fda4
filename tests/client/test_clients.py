"""Both clients, through the same cases."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import io
from contextlib import aclosing, closing
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import grpc
import pytest
from google.rpc import error_details_pb2  # pyright: ignore[reportMissingTypeStubs]

from loramux.v1 import adapter_pb2, adapter_service_pb2, generation_pb2
from loramux_client import AsyncClient, Client, Sizes, Use, errors, patience
from loramux_client.channel import SPREAD, channel_options, is_loopback
from loramux_client.pictures import Done, ImageReady, Queued, Started, Step
from loramux_client.server_info import Health
from loramux_client.shelf import AuditEvent, FileNotes
from loramux_client.upload_source import CHUNK_BYTES


def test_the_clients_have_the_same_methods_with_the_same_parameters() -> None:
    def face(client: type[Any]) -> dict[str, list[tuple[str, Any]]]:
        return {
            name: [(p.name, p.annotation) for p in inspect.signature(method).parameters.values()]
            for name, method in inspect.getmembers(client, inspect.isfunction)
            if not name.startswith("_") or name == "__init__"
        }

    assert face(Client) == face(AsyncClient)


async def test_generate_sends_only_what_was_said(ask: Any, server: Any) -> None:
    await ask("generate", "a red apple", request_id="mine")
    await ask("stream", "a red apple")
    said = generation_pb2.GenerateRequest(prompt="a red apple")
    assert server.requests == [generation_pb2.GenerateRequest(prompt="a red apple", request_id="mine"), said]


async def test_every_generate_has_an_id_of_its_own(ask: Any, server: Any) -> None:
    for _ in range(3):
        await ask("generate", "a red apple")
    ids = {request.request_id for request in server.requests}
    assert len(ids) == 3 and all(str(UUID(text, version=4)) == text for text in ids)


async def test_generate_sends_everything_and_reads_everything(ask: Any, server: Any) -> None:
    made = await ask(
        "generate",
        "cat",
        adapters=[Use("ink@3", -0.5), "noto"],
        negative_prompt="dog",
        sampler="euler-a",
        steps=3,
        guidance_scale=0.0,
        seed=7,
        num_images=2,
        width=64,
        height=128,
        priority="batch",
        request_id="mine",
    )
    entry = generation_pb2.BlendEntry
    blend = [entry(adapter="ink@3", weight=-0.5), entry(adapter="noto")]
    assert server.requests == [
        generation_pb2.GenerateRequest(
            prompt="cat",
            negative_prompt="dog",
            blend=generation_pb2.Blend(entries=blend),
            sampler=generation_pb2.SAMPLER_EULER_ANCESTRAL,
            steps=3,
            guidance_scale=0.0,
            seed=7,
            num_images=2,
            width=64,
            height=128,
            priority=generation_pb2.PRIORITY_BATCH,
            request_id="mine",
        )
    ]
    assert [(i.index, i.seed, i.format, i.data[:4]) for i in made.images] == [
        (0, 7, "png", b"\x89PNG"),
        (1, 8, "png", b"\x89PNG"),
    ]
    assert made.applied.sampler == "euler-a"
    assert [(a.adapter, a.version, a.weight) for a in made.applied.adapters] == [
        ("ink", 2, -0.5),
        ("noto", 2, 0.0),
    ]
    assert made.timings.total == 6


async def test_how_noise_falls_may_be_asked(ask: Any, server: Any) -> None:
    made = await ask("generate", "", sigma_schedule="karras", timesteps=(999, 40), guidance_rescale=0.5)
    (request,) = server.requests
    assert request.sigma_schedule == generation_pb2.SIGMA_SCHEDULE_KARRAS
    assert list(request.timesteps) == [999, 40] and request.guidance_rescale == 0.5
    assert made.applied.sigma_schedule is None and made.applied.timesteps == ()


async def test_reading_and_delivery_may_be_asked(ask: Any, server: Any) -> None:
    await ask("generate", "", prompt_syntax="plain", long_prompt="cut", clip_skip=1, image_format="webp", quality=7)
    (request,) = server.requests
    assert request.prompt_syntax == generation_pb2.PROMPT_SYNTAX_PLAIN
    assert request.long_prompt == generation_pb2.LONG_PROMPT_CUT and request.clip_skip == 1
    assert request.image_format == generation_pb2.IMAGE_FORMAT_WEBP and request.quality == 7


async def test_a_blend_may_be_weighted_by_part_and_progress(ask: Any, server: Any) -> None:
    parts: dict[str, float] = {"unet": 0.8, "text_encoder": 0.0, "text_encoder_2": 1.5}
    ink = Use("ink", 0.5, blocks={"mid": 2, "up.0": -1}, schedule=[(0.2, 0), (0.2, 1)], **parts)  # pyright: ignore[reportArgumentType]
    await ask("generate", "", adapters=[ink], negative_adapters=["noto"])
    await ask("generate", "", adapters=[ink], negative_adapters=[])
    first, second = server.requests
    (entry,) = first.blend.entries
    assert {part: getattr(entry.part_weights, part) for part in parts} == parts
    assert dict(entry.part_weights.blocks) == {"mid": 2, "up.0": -1}
    assert [(point.progress, point.factor) for point in entry.schedule] == [(0.2, 0), (0.2, 1)]
    assert [e.adapter for e in first.negative_blend.entries] == ["noto"]
    assert second.HasField("negative_blend") and not second.negative_blend.entries


async def test_what_sdxl_is_told_of_sizes_may_be_asked(ask: Any, server: Any) -> None:
    made = await ask("generate", "", size_conditioning=Sizes(512, crop_top=0), negative_size_conditioning=Sizes())
    (request,) = server.requests
    told = request.size_conditioning
    assert told.original_width == 512 and told.HasField("crop_top") and not told.HasField("original_height")
    assert request.HasField("negative_size_conditioning")
    assert made.applied.size_conditioning == Sizes(512, 0, 0, 0, 0, 0)
    plain = await ask("generate", "")
    assert not server.requests[1].HasField("size_conditioning") and plain.applied.size_conditioning is None
    with pytest.raises(errors.InvalidArgument, match=r"size_conditioning\.crop_left cannot be 'x'"):
        await ask("generate", "", size_conditioning=Sizes(crop_left="x"))  # type: ignore[arg-type]


async def test_an_image_and_a_mask_may_be_bytes_paths_or_open_files(ask: Any, server: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"picture")
    made = await ask("generate", "", image=b"picture", mask=path, strength=0.25, mask_blur=4)
    with path.open("rb") as file:
        await ask("generate", "", image=str(path), mask=file)
    await ask("generate", "", image=io.BytesIO(b"picture"), mask=bytearray(b"picture"))
    assert [(request.image, request.mask) for request in server.requests] == [(b"picture", b"picture")] * 3
    assert [request.HasField("strength") for request in server.requests] == [True, False, False]
    assert (server.requests[0].strength, server.requests[0].mask_blur) == (0.25, 4)
    digest = sha256(b"picture").hexdigest()
    assert (made.applied.strength, made.applied.mask_blur) == (0.25, 4)
    assert (made.applied.image_sha256, made.applied.mask_sha256) == (digest, digest)
    plain = await ask("generate", "")
    assert (plain.applied.strength, plain.applied.image_sha256, plain.applied.mask_sha256) == (None, None, None)


async def test_an_image_that_is_nowhere_is_the_systems_error(ask: Any, server: Any) -> None:
    with pytest.raises(FileNotFoundError):
        await ask("generate", "", image="/nowhere/a.png")
    assert server.requests == []


async def test_a_blend_may_be_a_mapping(ask: Any, server: Any) -> None:
    await ask("generate", "", adapters={"ink": 0.8, "noto": None})
    first, second = server.requests[0].blend.entries
    assert (first.adapter, first.weight, second.adapter) == ("ink", 0.8, "noto")
    assert not second.HasField("weight")


@pytest.mark.parametrize(
    ("asking", "where"),
    [
        ({"steps": 2**40}, "steps"),
        ({"seed": 1.5}, "seed"),
        ({"sampler": "plms"}, "sampler"),
        ({"priority": "urgent"}, "priority"),
        ({"sigma_schedule": "uniform"}, "sigma_schedule"),
        ({"timesteps": [1.5]}, "timesteps"),
        ({"image": 7}, "image"),
        ({"image": b"", "mask": io.StringIO("text")}, "mask"),
        ({"strength": "much"}, "strength"),
        ({"adapters": [Use("a", blocks={"mid": "much"})]}, "blend.entries[0].part_weights.blocks"),  # pyright: ignore[reportArgumentType]
        ({"negative_adapters": [Use("a", schedule=[("x", 1)])]}, "negative_blend.entries[0].schedule.progress"),  # pyright: ignore[reportArgumentType]
        ({"adapters": [Use("a"), Use("b", "much")]}, "blend.entries[1].weight"),  # pyright: ignore[reportArgumentType]
    ],
)
async def test_what_cannot_be_sent_is_an_invalid_argument(ask: Any, asking: dict[str, Any], where: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        await ask("generate", "", **asking)
    assert [v.field for v in caught.value.violations] == [where]


async def test_stream_tells_what_happens_and_skips_what_it_does_not_know(ask: Any) -> None:
    events = await ask("stream", "cat", seed=1, num_images=2)
    kinds = [Queued, Started, Step, Step, Step, ImageReady, ImageReady, Done]
    assert [type(event) for event in events] == kinds
    assert events[0] == Queued(4)
    assert events[2] == Step(image_index=0, step=1, total=3)
    assert events[-2].image.seed == 2


async def test_lists_come_whole_from_all_pages(ask: Any, server: Any) -> None:
    found = await ask("list_adapters")
    assert [one.name for one in found] == server.names
    assert [request.page_token for request in server.requests] == ["", "3", "6"]
    assert found[0].create_time == datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)
    assert found[0].update_time is None
    assert found[0].default_weight is None
    versions = await ask("list_versions", "a1")
    assert [(v.adapter, v.number) for v in versions] == [("a1", n) for n in (5, 4, 3, 2, 1)]


async def test_get_and_delete_name_the_adapter(ask: Any, server: Any) -> None:
    assert (await ask("get_adapter", "ink")).latest_version.kind == "lora"
    assert (await ask("delete_adapter", "ink")).labels == {"k": "v"}
    assert [request.name for request in server.requests] == ["ink", "ink"]


async def test_lists_are_selected_by_the_server(ask: Any, server: Any) -> None:
    await ask("list_adapters", filter="kind=lora", order_by="name desc", deleted=True)
    sent = {(r.filter, r.order_by, r.show_deleted) for r in server.requests}
    assert len(server.requests) == 3 and sent == {("kind=lora", "name desc", True)}


async def test_everything_of_an_adapter_is_read(ask: Any, server: Any) -> None:
    found = await ask("get_adapter", "ink@prod")
    assert (found.licence, found.base_model, found.etag) == ("CC0", "v1-5", "e-1")
    assert (found.aliases, found.trigger_source) == ({"prod": 1}, "ss_dataset_dirs")
    assert found.asked_version.number == 1 != found.latest_version.number
    assert found.latest_version.device_bytes == 5000
    assert found.latest_version.notes == FileNotes(("w",), "ss_dataset_dirs", "CC0", "b")
    assert (await ask("get_adapter", "ink")).asked_version is None


async def test_an_update_names_what_it_changes(ask: Any, server: Any) -> None:
    await ask("update_adapter", "ink", etag="e", description="", default_weight=None)
    await ask(
        "update_adapter",
        "ink",
        labels={"a": "b"},
        trigger_words=["w"],
        default_weight=0.5,
        aliases={"prod": 3},
        licence="l",
        base_model="m",
    )
    emptied, said = server.requests
    assert list(emptied.update_mask.paths) == ["default_weight", "description"]
    assert emptied.adapter == adapter_pb2.Adapter(name="ink", etag="e")
    assert len(said.update_mask.paths) == 6 and said.adapter == adapter_pb2.Adapter(
        name="ink",
        labels={"a": "b"},
        trigger_words=["w"],
        default_weight=0.5,
        aliases={"prod": 3},
        licence="l",
        base_model="m",
    )
    with pytest.raises(errors.InvalidArgument, match="description"):
        await ask("update_adapter", "ink", description=3)


async def test_deleting_and_undeleting_may_depend_on_an_etag(ask: Any, server: Any) -> None:
    await ask("delete_adapter", "ink", etag="e")
    await ask("undelete_adapter", "ink", etag="f")
    assert [(r.name, r.etag) for r in server.requests] == [("ink", "e"), ("ink", "f")]


async def test_adapters_are_preloaded_and_pinned_to_a_tier(ask: Any, server: Any) -> None:
    loaded = await ask("preload_adapter", "ink@prod", "host")
    assert (loaded.version.adapter, loaded.version.number, loaded.tier) == ("ink", 2, "host")
    assert (await ask("preload_adapter", "ink")).tier == "device"
    pinned = await ask("pin_adapter", "ink@prod", "host")
    assert pinned.pins == {"ink": "device", "ink@prod": "host"} and pinned.tier == "host"
    await ask("pin_adapter", "ink")
    await ask("unpin_adapter", "ink@prod")
    host, device = adapter_pb2.TIER_HOST, adapter_pb2.TIER_DEVICE
    asked = [(request.adapter, getattr(request, "tier", None)) for request in server.requests]
    assert asked == [("ink@prod", host), ("ink", device), ("ink@prod", host), ("ink", device), ("ink@prod", None)]
    for method in ("preload_adapter", "pin_adapter"):
        with pytest.raises(errors.InvalidArgument, match="tier: is 'disk', expected host or device"):
            await ask(method, "ink", "disk")
    with pytest.raises(errors.InvalidArgument, match="adapter"):
        await ask("unpin_adapter", 3)


async def test_the_audit_log_comes_whole(ask: Any, server: Any) -> None:
    found = await ask("list_audit_events", "a1")
    assert found[0] == AuditEvent(None, "ann", "upload", "a5", 1, "d")
    assert [event.version for event in found] == [1, None, 1, None, 1]
    assert {request.adapter for request in server.requests} == {"a1"}


async def test_who_calls_is_told_with_every_call(server: Any) -> None:
    with Client(server.target, who="Jörg") as one:
        await asyncio.to_thread(lambda: (one.get_adapter("x"), one.generate("p"), list(one.stream("p"))))
        await asyncio.to_thread(one.upload, b"file", "x")
    async with AsyncClient(server.target, who="Jörg") as other:
        await other.get_adapter("x")
        _ = [event async for event in other.stream("p")]
        await other.upload(b"file", "x")
    assert len(server.metadata) >= 7
    assert {sent.get("loramux-who") for sent in server.metadata} == {"J%C3%B6rg"}
    async with AsyncClient(server.target) as nobody:
        await nobody.get_adapter("x")
    assert "loramux-who" not in server.metadata[-1]


async def test_server_info_keeps_samplers_it_does_not_know(ask: Any) -> None:
    info = await ask("server_info")
    assert [str(sampler) for sampler in info.samplers] == ["ddim (karras, unknown-9, timesteps)", "unknown-99"]
    assert info.image_formats == ("png", "unknown-99") and info.library_versions == {"torch": "2"}
    assert info.takes_size_conditioning and (info.limits.max_weight, info.limits.max_seed) == (16, 5)
    assert (info.base, info.limits.max_side, info.defaults.sampler) == ("tiny", 512, "dpmpp-2m")
    assert (info.limits.max_image_bytes, info.limits.max_image_pixels, info.inpainting) == (99, 9, True)
    assert (info.family, info.distilled) == ("sdxl", "lcm")


async def test_health_speaks_grpc_health_v1(ask: Any) -> None:
    assert await ask("health") is Health.SERVING
    assert await ask("health", "down") is Health.NOT_SERVING


# Uploads.


@pytest.mark.parametrize("size", [1, CHUNK_BYTES, CHUNK_BYTES * 2 + 5])
@pytest.mark.parametrize("from_file", [True, False])
async def test_upload_sends_the_spec_then_every_byte(
    ask: Any, server: Any, tmp_path: Path, size: int, from_file: bool
) -> None:
    content = bytes(i % 251 for i in range(size))
    source: Any = content
    if from_file:
        source = tmp_path / "My Ink!.safetensors"
        source.write_bytes(content)
    told: list[tuple[int, int]] = []

    def tell(sent: int, total: int) -> None:
        told.append((sent, total))

    uploaded = await ask(
        "upload",
        source,
        None if from_file else "my-ink",
        progress=tell,
        alpha=4.0,
        labels={"by": "me"},
        trigger_words=["inky"],
        default_weight=0.0,
    )
    spec = server.requests[0]
    assert (spec.name, spec.size_bytes) == ("my-ink", size)
    assert spec.sha256 == hashlib.sha256(content).hexdigest()
    assert (spec.alpha, dict(spec.labels), list(spec.trigger_words)) == (4, {"by": "me"}, ["inky"])
    assert spec.HasField("default_weight")
    assert not spec.HasField("peft_config")
    assert b"".join(server.chunks) == content
    assert max(map(len, server.chunks)) <= CHUNK_BYTES
    assert [sent for sent, _ in told] == sorted(sent for sent, _ in told)
    assert told[-1] == (size, size)
    assert uploaded.version.number == 1
    assert uploaded.created
    assert uploaded.report.matched[0].rank == 8


async def test_an_embedding_has_a_trigger(ask: Any, server: Any) -> None:
    uploaded = await ask("upload", b"x", "emb", trigger="<dog>")
    assert server.requests[0].trigger == "<dog>"
    assert uploaded.report.embedding.trigger == "<dog>" and uploaded.report.matched == ()
    version = (await ask("get_adapter", "emb")).latest_version
    assert (version.kind, version.rank, version.embedding.vectors) == ("embedding", 0, 4)
    assert (await ask("get_adapter", "ink")).latest_version.embedding is None
    (applied,) = (await ask("generate", "a <cat>", adapters={"emb": 1.0})).applied.adapters
    assert (applied.kind, applied.trigger) == ("embedding", "<cat>")


async def test_validate_only_publishes_nothing(ask: Any, server: Any) -> None:
    uploaded = await ask("upload", b"x", "x", validate_only=True)
    assert server.requests[0].validate_only
    assert uploaded.version is None
    assert uploaded.report.warnings == ("look",)


async def test_a_refusal_in_the_middle_of_an_upload_is_told(ask: Any, server: Any) -> None:
    server.refuse_upload_after = 2
    with pytest.raises(errors.ResourceExhausted, match="too large"):
        await ask("upload", bytes(CHUNK_BYTES * 40), "big")
    assert len(server.chunks) < 40


async def test_a_progress_callback_that_raises_ends_the_upload(ask: Any, server: Any) -> None:
    def stop(sent: int, total: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        await ask("upload", b"xyz", "x", progress=stop)
    assert server.chunks == []


async def test_cancelling_the_task_ends_its_upload(server: Any) -> None:
    server.hang_in_upload = True
    async with AsyncClient(server.target) as client:
        task = asyncio.create_task(client.upload(bytes(CHUNK_BYTES * 40), "big"))
        await asyncio.wait_for(server.started.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.cancelled.wait(), 5)


async def test_a_missing_file_is_an_os_error(ask: Any, server: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await ask("upload", tmp_path / "none.safetensors")
    assert server.requests == []


async def test_what_the_server_has_is_not_sent_again(ask: Any, server: Any) -> None:
    content = bytes(i % 251 for i in range(CHUNK_BYTES * 3))
    server.uploads = AnyUpload(adapter_service_pb2.UploadState(received_bytes=CHUNK_BYTES + 7))
    told: list[int] = []
    await ask("upload", content, "x", progress=lambda sent, _: told.append(sent))
    assert b"".join(server.chunks) == content[CHUNK_BYTES + 7 :]
    assert told == [2 * CHUNK_BYTES + 7, 3 * CHUNK_BYTES]


@pytest.mark.parametrize("breaks", [0, 1])
async def test_an_upload_that_ended_earlier_is_made_again(
    ask: Any, server: Any, monkeypatch: pytest.MonkeyPatch, breaks: int
) -> None:
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.01)
    server.fail(grpc.StatusCode.UNAVAILABLE, "not now", times=breaks)
    ended = adapter_service_pb2.UploadAdapterResponse(created=False)
    server.uploads = AnyUpload(adapter_service_pb2.UploadState(received_bytes=3, result=ended))
    assert (await ask("upload", b"xyz", "x")).created
    assert server.chunks == [b"xyz"]


@pytest.mark.parametrize(
    ("code", "reason", "told_s", "again"),
    [
        (grpc.StatusCode.UNAVAILABLE, "", None, True),
        (grpc.StatusCode.ABORTED, "UPLOAD_BUSY", None, True),
        (grpc.StatusCode.FAILED_PRECONDITION, "WRONG_OFFSET", None, True),
        (grpc.StatusCode.ABORTED, "ETAG_MISMATCH", None, False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "UPLOAD_BYTES", 0.02, True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "UPLOAD_BYTES", 3600, False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "NO_SPACE", None, False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", None, False),
    ],
)
async def test_an_upload_is_taken_up_again_where_that_may_help(
    ask: Any,
    server: Any,
    monkeypatch: pytest.MonkeyPatch,
    code: grpc.StatusCode,
    reason: str,
    told_s: float | None,
    again: bool,
) -> None:
    """Not where the time told is longer than the timeout of a try."""
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.01)
    server.fail(code, "not now", error_details_pb2.ErrorInfo(reason=reason), times=2, told_s=told_s)
    if again:
        assert (await ask("upload", b"xyz", "x")).created
        assert server.chunks == [b"xyz"] and len(server.requests) == 3
        assert len({request.upload_id for request in server.requests}) == 1
    else:
        with pytest.raises(errors.LoraMuxClientError, match="not now"):
            await ask("upload", b"xyz", "x")
        assert len(server.requests) == 1


def test_patience_ends_and_progress_renews_it() -> None:
    pauses: list[float] = []
    closed: Any = SimpleNamespace(wait=lambda seconds: pauses.append(seconds))
    patient, error = patience.Patience(2, closed), errors.Unavailable("no")
    for reached in (0, 0, 5, 5):
        patient.wait(error, reached)
    with pytest.raises(errors.Unavailable):
        patient.wait(error, 5)
    assert pauses == [0.5, 1.0, 0.5, 1.0]
    patient.wait(errors.Aborted("no", reason="UPLOAD_BUSY", retry_after=3.0), 6)
    assert 3.0 <= pauses[-1] <= 3.75, "as long as the server says, or a little longer"


async def test_other_uploads_have_other_ids(ask: Any, server: Any) -> None:
    for asked in ({}, {"alpha": 2.0}, {"labels": {"a": "b"}}, {}):
        await ask("upload", b"xyz", "x", **asked)
    await ask("upload", b"xyy", "x")
    await ask("upload", b"xyz", "y")
    ids = [request.upload_id for request in server.requests]
    assert ids[0] == ids[3] and len(set(ids)) == 5


async def test_what_is_known_of_an_upload_can_be_asked(ask: Any, server: Any) -> None:
    state = adapter_service_pb2.UploadState(upload_id="some-upload", received_bytes=3, size_bytes=9)
    state.expire_time.FromSeconds(1_000_000_000)
    server.uploads = AnyUpload(state)
    found = await ask("get_upload", "some-upload")
    assert (found.upload_id, found.received, found.size, found.ended) == ("some-upload", 3, 9, None)
    assert found.expire_time.year == 2001
    await ask("abort_upload", "some-upload")
    assert server.requests[-1].upload_id == "some-upload"


class AnyUpload(dict[str, Any]):
    """Says the same of every upload."""

    def __init__(self, state: adapter_service_pb2.UploadState) -> None:
        super().__init__()
        self._state = state

    def get(self, *_: Any) -> Any:
        return self._state


# Downloads.


def offer(server: Any, size: int) -> bytes:
    server.file = bytes(i % 251 for i in range(size))
    server.file_digest = hashlib.sha256(server.file).hexdigest()
    return server.file


@pytest.mark.parametrize("broken_at", [-1, 0, 1000, 3000])
async def test_a_download_is_exact_also_after_a_break(
    ask: Any, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_at: int
) -> None:
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.01)
    content, server.break_download_at = offer(server, 3500), broken_at
    told: list[tuple[int, int]] = []
    version = await ask("download", "ink", tmp_path / "f", progress=lambda *so_far: told.append(so_far))
    assert (tmp_path / "f").read_bytes() == content and list(tmp_path.iterdir()) == [tmp_path / "f"]
    assert version.blob_digest == server.file_digest
    assert [so_far for so_far, _ in told] == [1000, 2000, 3000, 3500]
    if broken_at >= 0:
        assert (server.requests[-1].adapter, server.requests[-1].offset) == ("ink@2", broken_at)


async def test_a_download_that_is_wrong_leaves_what_was_there(ask: Any, server: Any, tmp_path: Path) -> None:
    offer(server, 3500)
    server.file_digest = "0" * 64
    (tmp_path / "f").write_bytes(b"before")
    with pytest.raises(errors.DataLoss, match="3500 bytes"):
        await ask("download", "ink", tmp_path / "f")
    assert list(tmp_path.iterdir()) == [tmp_path / "f"] and (tmp_path / "f").read_bytes() == b"before"


# Errors.


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidArgument),
        (grpc.StatusCode.NOT_FOUND, errors.NotFound),
        (grpc.StatusCode.ALREADY_EXISTS, errors.AlreadyExists),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.FailedPrecondition),
        (grpc.StatusCode.ABORTED, errors.Aborted),
        (grpc.StatusCode.OUT_OF_RANGE, errors.OutOfRange),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.ResourceExhausted),
        (grpc.StatusCode.UNAUTHENTICATED, errors.PermissionDenied),
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.DATA_LOSS, errors.DataLoss),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, errors.Cancelled),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Unimplemented),
        (grpc.StatusCode.INTERNAL, errors.Internal),
        (grpc.StatusCode.UNKNOWN, errors.Internal),
    ],
)
@pytest.mark.parametrize("method", ["generate", "stream"])
async def test_each_code_has_its_class(
    ask: Any, server: Any, code: grpc.StatusCode, kind: type[Exception], method: str
) -> None:
    server.fail(code, "because", error_details_pb2.ErrorInfo(reason="R", domain="loramux"))
    with pytest.raises(kind, match="because") as caught:
        await ask(method, "")
    assert type(caught.value) is kind


async def test_details_become_attributes(ask: Any, server: Any) -> None:
    info = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="loramux", metadata={"waiting": "9"})
    violation = error_details_pb2.BadRequest.FieldViolation(field="steps", description="too\nmany")
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    bad = error_details_pb2.BadRequest(field_violations=[violation])
    server.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue is full", info, bad, retry)
    with pytest.raises(errors.ResourceExhausted) as caught:
        await ask("delete_adapter", "ink")  # of which nothing waits and asks again
    error = caught.value
    assert (error.message, error.reason, error.retry_after) == ("queue is full", "QUEUE_FULL", 1.5)
    assert error.metadata == {"waiting": "9"}
    assert error.violations == (errors.Violation("steps", "too\nmany"),)
    assert error.lines() == ["queue is full (try again in 1.5 s)", "  steps: too many"]


async def test_nobody_there_is_unavailable_and_names_the_target() -> None:
    told = r"^no answer from a server at 127.0.0.1:1: Connection refused$"
    async with AsyncClient("127.0.0.1:1") as client:
        for call in (client.health(), client.delete_adapter("ink")):
            with pytest.raises(errors.Unavailable, match=told):
                await call
    with Client("127.0.0.1:1") as sync:
        for call in (sync.health, lambda: sync.delete_adapter("ink")):
            with pytest.raises(errors.Unavailable, match=told):
                await asyncio.to_thread(call)


@pytest.mark.parametrize(
    ("target", "here"),
    [
        (target, True)
        for target in ("127.0.0.1:1", "localhost:1", "localhost", "[::1]:1", "unix:/run/x", "unix-abstract:x")
    ]
    + [(target, True) for target in ("dns:///localhost:1", "dns:127.0.0.1:1", "ipv4:127.0.0.1:1,127.0.0.2:1")]
    + [(target, True) for target in ("ipv6:[::1]:1,[::1]:2",)]
    + [(target, False) for target in ("example.org:1", "10.0.0.7:1", "127.example.org:1", "localhost.example.org:1")]
    + [(target, False) for target in ("dns:///loramux:1", "dns://10.0.0.7/localhost:1", "xds:///localhost:1", "")]
    + [(target, False) for target in ("ipv4:127.0.0.1:1,10.0.0.7:1", "ipv4:10.0.0.7:1,127.0.0.1:1", "ipv6:[::2]:1")],
)
def test_a_target_is_this_machine_where_all_its_addresses_are(target: str, here: bool) -> None:
    assert is_loopback(target) is here
    assert (("grpc.enable_http_proxy", 0) in channel_options(target, SPREAD)) is here


async def test_only_safe_calls_are_tried_again_by_the_channel(ask: Any, server: Any) -> None:
    server.fail(grpc.StatusCode.UNAVAILABLE, "draining", times=1)
    assert (await ask("get_adapter", "ink")).name == "ink"
    assert len(server.requests) == 2
    server.fail(grpc.StatusCode.UNAVAILABLE, "draining", times=1)
    with pytest.raises(errors.Unavailable):
        await ask("delete_adapter", "ink")
    assert len(server.requests) == 3


async def test_a_deadline_ends_the_call_on_the_server_too(ask: Any, server: Any) -> None:
    server.steps_before_hanging = 1
    with pytest.raises(errors.DeadlineExceeded):
        await ask("generate", "", timeout=0.3)
    await asyncio.wait_for(server.cancelled.wait(), 5)


async def test_a_generation_larger_than_grpcs_own_limit_arrives(ask: Any, server: Any) -> None:
    server.padding = bytes(3 * 1024 * 1024)
    made = await ask("generate", "x", num_images=3)
    assert sum(len(image.data) for image in made.images) > 9 * 1024 * 1024


# Cancelling.


async def test_closing_the_sync_iterator_cancels_the_call(server: Any) -> None:
    server.steps_before_hanging = 2

    def two_steps() -> None:
        with closing(client.stream("x")) as events:
            for event in events:
                if event == Step(0, 2, 3):
                    break

    with Client(server.target) as client:
        await asyncio.to_thread(two_steps)
        # The channel is open still: it is the iterator that cancels.
        await asyncio.wait_for(server.cancelled.wait(), 5)


async def test_closing_the_async_iterator_cancels_the_call(server: Any) -> None:
    server.steps_before_hanging = 2
    async with AsyncClient(server.target) as client:
        async with aclosing(client.stream("x")) as events:
            async for event in events:
                if event == Step(0, 2, 3):
                    break
        await asyncio.wait_for(server.cancelled.wait(), 5)


@pytest.mark.parametrize("method", ["generate", "stream"])
async def test_cancelling_the_task_cancels_the_call(server: Any, method: str) -> None:
    server.steps_before_hanging = 1

    async def draw(client: AsyncClient) -> None:
        if method == "generate":
            await client.generate("x")
        else:
            async for _ in client.stream("x"):
                pass

    async with AsyncClient(server.target) as client:
        task = asyncio.create_task(draw(client))
        await asyncio.wait_for(server.started.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.cancelled.wait(), 5)
