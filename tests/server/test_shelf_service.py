"""Uploads and downloads over the wire: what breaks goes on, what is wrong is told. No base, no engine."""

import asyncio
import errno
import hashlib
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import torch
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from loading import Pool
from pausing import Pause
from safetensors.torch import save

from loramux.v1 import adapter_service_pb2 as pb
from loramux.v1 import adapter_service_pb2_grpc
from loramux_client import AsyncClient, LoraMuxClientError
from loramux_client.errors import DataLoss
from loramux_client.upload_source import CHUNK_BYTES
from loramux_server import adapter_service
from loramux_server.adapter_service import AdapterService
from loramux_server.interceptors import Interceptor
from loramux_server.janitor import keep_clean
from loramux_server.metrics import Metrics
from loramux_server.tiers import Tiers
from loramux_store import Store
from loramux_store.errors import DiskFailed

ID = "9c1185a5-c5e9-4fc6-8080-8977598af745"


def adapter_file(seed: int = 1) -> bytes:
    """Four modules of Stable Diffusion 1: some chunks long."""
    random = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for i in (0, 1):
        for part in "kv":
            key = f"lora_unet_down_blocks_0_attentions_{i}_transformer_blocks_0_attn2_to_{part}"
            tensors[f"{key}.lora_down.weight"] = torch.randn(64, 768, generator=random)
            tensors[f"{key}.lora_up.weight"] = torch.randn(320, 64, generator=random)
    return save(tensors)


FILE = adapter_file()


class Door:
    """The service on a store. It can be shut, as by a kill, and opened again on its port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.options: dict[str, Any] = {}

    async def open(self) -> None:
        self.store, self.metrics = Store.open(self.folder, **self.options), Metrics()
        cache = Pool(rows=16).cache
        self.close_cache = cache.close
        tiers = Tiers(self.store, cache, lambda _: None, self.metrics)
        self.service = AdapterService(self.store, tiers, self.metrics)
        self.server = grpc.aio.server(interceptors=[Interceptor(self.metrics)], options=[("grpc.so_reuseport", 0)])
        adapter_service_pb2_grpc.add_AdapterServiceServicer_to_server(self.service, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")
        self.stub = adapter_service_pb2_grpc.AdapterServiceStub(self.channel)

    async def shut(self) -> None:
        await self.channel.close()
        await self.server.stop(None)
        await self.service.close()
        self.close_cache()
        self.store.close()

    def outcomes(self) -> dict[str, float]:
        """Of uploads, by how they ended."""
        (family,) = [one for one in self.metrics.registry.collect() if one.name == "loramux_uploads"]
        return {s.labels["outcome"]: s.value for s in family.samples if s.name.endswith("_total")}

    def received(self) -> float:
        found = self.metrics.registry.get_sample_value("loramux_upload_bytes_total")
        assert found is not None
        return found


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    made = Door(tmp_path / "store")
    await made.open()
    yield made
    await made.shut()


@pytest.fixture
async def client(door: Door) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(f"127.0.0.1:{door.port}") as made:
        yield made


def spec(data: bytes = FILE, **fields: Any) -> pb.UploadSpec:
    digest = hashlib.sha256(data).hexdigest()
    return pb.UploadSpec(**{"name": "x", "size_bytes": len(data), "sha256": digest, "upload_id": ID, **fields})


def messages(chunks: bytes, offset: int = 0, **fields: Any) -> Iterator[pb.UploadAdapterRequest]:
    yield pb.UploadAdapterRequest(spec=spec(**fields), offset=offset)
    for start in range(0, len(chunks), 1 << 18):
        yield pb.UploadAdapterRequest(chunk=chunks[start : start + (1 << 18)])


async def refusal(call: Any) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo, list[str]]:
    """Code, ErrorInfo and the names of the other details of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    assert status is not None, caught.value
    info = error_details_pb2.ErrorInfo()
    others = [detail.TypeName().rpartition(".")[2] for detail in status.details if not detail.Unpack(info)]
    return caught.value.code(), info, others


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_an_upload_goes_on_after_the_server_was_restarted(door: Door, client: AsyncClient) -> None:
    pause = Pause()
    pushing = asyncio.create_task(client.upload(FILE, "x", progress=pause))
    await pause.reached.wait()
    await until(lambda: door.received() >= CHUNK_BYTES)
    await door.shut()
    await door.open()
    pause.go_on.set()
    pushed = await pushing
    assert pushed.created and pushed.version is not None
    assert pushed.version.blob_digest == hashlib.sha256(FILE).hexdigest()
    assert 0 < door.received() <= len(FILE) - CHUNK_BYTES, "only the rest came again"
    assert pause.told[-1] == len(FILE)
    assert door.outcomes() == {"created": 1.0}


async def test_the_same_upload_by_another_client_goes_on(door: Door, client: AsyncClient) -> None:
    def stop(so_far: int, total: int) -> None:
        if so_far > total // 2:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        await client.upload(FILE, "x", progress=stop)
    await until(door.outcomes)
    first = door.received()
    assert first > 0
    async with AsyncClient(client.target) as another:
        assert (await another.upload(FILE, "x")).created
    assert door.received() == len(FILE)
    assert door.outcomes() == {"refused": 1.0, "created": 1.0}


async def test_a_b_a_over_the_wire_makes_three_versions(client: AsyncClient) -> None:
    made = [await client.upload(adapter_file(seed), "x") for seed in (1, 2, 1, 1)]
    assert [(one.version.number, one.created) for one in made] == [(1, True), (2, True), (3, True), (3, False)]
    assert made[0].version.digest == made[2].version.digest != made[1].version.digest


async def test_a_lost_answer_is_asked_for(door: Door, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = AdapterService.UploadAdapter

    async def loses_the_answer(self: AdapterService, requests: Any, context: Any) -> None:
        await upload(self, requests, context)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")

    monkeypatch.setattr(AdapterService, "UploadAdapter", loses_the_answer)
    await door.shut()
    await door.open()
    pushed = await client.upload(FILE, "x")
    assert pushed.created and pushed.version.number == 1
    assert door.received() == len(FILE), "nothing came twice"


async def test_an_upload_whose_call_was_cancelled_at_the_end_is_published(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, begun, go_on = door.store._finish, threading.Event(), threading.Event()

    def slowly(*args: Any) -> Any:
        begun.set()
        go_on.wait(20)
        return finish(*args)

    monkeypatch.setattr(door.store, "_finish", slowly)
    call = door.stub.UploadAdapter(messages(FILE))
    await until(begun.is_set)
    call.cancel()
    code, info, others = await refusal(door.stub.UploadAdapter(messages(FILE)))
    assert (code, info.reason, others) == (grpc.StatusCode.ABORTED, "UPLOAD_BUSY", ["RetryInfo"])
    go_on.set()
    async with asyncio.timeout(20):
        while not (state := await door.stub.GetUpload(pb.GetUploadRequest(upload_id=ID))).HasField("result"):
            assert state.received_bytes in (0, len(FILE))  # 0 once the file has gone to its place
            await asyncio.sleep(0.01)
    assert state.result.created and state.result.version.number == 1


async def test_a_call_cancelled_while_it_begins_lets_go_of_its_upload(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, begun, go_on = door.store.begin_upload, threading.Event(), threading.Event()

    def slowly(*args: Any, **named: Any) -> Any:
        begun.set()
        go_on.wait(20)
        return begin(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(door.store, "begin_upload", slowly)
        call = door.stub.UploadAdapter(messages(FILE))
        await until(begun.is_set)
        call.cancel()
        await until(lambda: call.done())
        go_on.set()
        await until(lambda: not door.service._sending)
    assert (await door.stub.UploadAdapter(messages(FILE))).created


async def test_what_is_wrong_with_going_on_is_told(door: Door) -> None:
    get, abort = pb.GetUploadRequest(upload_id=ID), pb.AbortUploadRequest(upload_id=ID)
    code, info, _ = await refusal(door.stub.UploadAdapter(messages(FILE[10:], offset=10)))
    assert (code, info.reason, info.metadata["received"]) == (grpc.StatusCode.FAILED_PRECONDITION, "WRONG_OFFSET", "0")
    for call in (door.stub.GetUpload(get), door.stub.AbortUpload(abort)):
        assert (await refusal(call))[:2][0] == grpc.StatusCode.NOT_FOUND
    assert (await refusal(door.stub.UploadAdapter(messages(FILE[:1000]))))[1].reason == "size_mismatch"
    state = await door.stub.GetUpload(get)
    assert (state.received_bytes, state.size_bytes, state.HasField("result")) == (1000, len(FILE), False)
    assert state.expire_time.seconds > 0
    code, info, _ = await refusal(door.stub.UploadAdapter(messages(FILE)))
    assert (code, info.reason, info.metadata["received"]) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "WRONG_OFFSET",
        "1000",
    )
    code, _, others = await refusal(door.stub.UploadAdapter(messages(FILE[1000:], 1000, name="y")))
    assert (code, others) == (grpc.StatusCode.INVALID_ARGUMENT, ["BadRequest"])
    assert (await door.stub.UploadAdapter(messages(FILE[1000:], 1000))).created
    await door.stub.AbortUpload(abort)
    assert (await refusal(door.stub.GetUpload(get)))[1].reason == "UPLOAD_NOT_FOUND"


async def test_an_upload_without_an_id_leaves_nothing(door: Door) -> None:
    call = door.stub.UploadAdapter(messages(FILE[:1000], upload_id=""))
    assert (await refusal(call))[1].reason == "size_mismatch"
    assert list((door.folder / "uploads").iterdir()) == []


async def test_chunks_may_come_in_calls_of_their_own(door: Door) -> None:
    async def write(offset: int, data: bytes, **fields: Any) -> pb.WriteUploadChunkResponse:
        request = pb.WriteUploadChunkRequest(spec=spec(), offset=offset, chunk=data, **fields)
        return await door.stub.WriteUploadChunk(request)

    half = len(FILE) // 2
    assert (await write(0, FILE[:half])).received_bytes == half
    code, info, _ = await refusal(write(0, FILE[:half]))
    assert (code, info.metadata["received"]) == (grpc.StatusCode.FAILED_PRECONDITION, str(half))
    done = await write(half, FILE[half:], finish=True)
    assert done.result.created and done.received_bytes == len(FILE)
    assert await write(half, FILE[half:], finish=True) == done, "a lost answer comes again"
    assert door.outcomes() == {"created": 1.0, "failed": 1.0}
    for request in (
        pb.WriteUploadChunkRequest(spec=spec(upload_id=""), chunk=b"x"),
        pb.WriteUploadChunkRequest(spec=spec(), chunk=bytes((1 << 20) + 1)),
    ):
        assert (await refusal(door.stub.WriteUploadChunk(request)))[0] == grpc.StatusCode.INVALID_ARGUMENT


async def test_an_upload_that_stalls_ends_and_can_go_on(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_service, "STALL_S", 0.2)

    async def stalling() -> AsyncIterator[pb.UploadAdapterRequest]:
        for message in messages(FILE[:1000]):
            yield message
        await asyncio.sleep(20)

    code, info, _ = await refusal(door.stub.UploadAdapter(stalling()))
    assert (code, info.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "UPLOAD_STALLED")
    assert (await door.stub.UploadAdapter(messages(FILE[1000:], 1000))).created


async def test_a_quota_is_told_before_any_byte(door: Door) -> None:
    door.options = {"quota_bytes": len(FILE)}
    await door.shut()
    await door.open()
    assert (await door.stub.UploadAdapter(messages(FILE))).created
    other = adapter_file(2)
    code, info, others = await refusal(door.stub.UploadAdapter(messages(other, data=other)))
    assert (code, info.reason, others) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", ["QuotaFailure"])
    assert dict(info.metadata) == {"needed": str(len(other)), "used": str(len(FILE)), "limit": str(len(FILE))}
    assert door.received() == len(FILE)


@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [
        (errno.ENOSPC, grpc.StatusCode.RESOURCE_EXHAUSTED, "NO_SPACE"),
        (errno.EROFS, grpc.StatusCode.FAILED_PRECONDITION, "STORE_READ_ONLY"),
        (errno.EIO, grpc.StatusCode.UNAVAILABLE, "DISK_FAILED"),
    ],
)
async def test_what_the_disk_refuses_is_told(
    door: Door, monkeypatch: pytest.MonkeyPatch, number: int, code: grpc.StatusCode, reason: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, "no")

    with monkeypatch.context() as patch:
        patch.setattr("loramux_store.disk.os.fsync", fail)
        found, info, _ = await refusal(door.stub.UploadAdapter(messages(FILE)))
    assert (found, info.reason) == (code, reason)
    assert (await door.stub.UploadAdapter(messages(FILE))).created


async def test_a_download_gives_back_the_exact_bytes(door: Door, client: AsyncClient, tmp_path: Path) -> None:
    await client.upload(FILE, "x")
    await client.upload(adapter_file(2), "x")
    told: list[tuple[int, int]] = []
    version = await client.download("x@1", tmp_path / "one", progress=lambda *so_far: told.append(so_far))
    assert (tmp_path / "one").read_bytes() == FILE
    assert (version.number, version.size_bytes) == (1, len(FILE))
    assert told[-1] == (len(FILE), len(FILE)) and len(told) == len(FILE) // (1 << 18) + 1
    assert (await client.download("x", tmp_path / "one")).number == 2
    assert (tmp_path / "one").read_bytes() == adapter_file(2), "replaced"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["one"]
    for adapter, offset, code in (("y", 0, "NOT_FOUND"), ("x", -1, "INVALID_ARGUMENT")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.stub.DownloadAdapter(pb.DownloadAdapterRequest(adapter=adapter, offset=offset)).read()
        assert caught.value.code().name == code


async def test_a_download_goes_on_with_its_version(door: Door, client: AsyncClient, tmp_path: Path) -> None:
    await client.upload(FILE, "x")
    pause = Pause()
    pulling = asyncio.create_task(client.download("x", tmp_path / "one", progress=pause))
    await pause.reached.wait()
    await door.shut()
    await door.open()
    async with AsyncClient(client.target) as another:
        await another.upload(adapter_file(2), "x")
    pause.go_on.set()
    assert (await pulling).number == 1
    assert (tmp_path / "one").read_bytes() == FILE


async def test_a_damaged_file_is_never_downloaded(door: Door, client: AsyncClient, tmp_path: Path) -> None:
    pushed = await client.upload(FILE, "x")
    blob = door.store._shelf.blob(pushed.version.blob_digest)
    damaged = bytearray(FILE)
    damaged[len(FILE) // 3] ^= 1
    blob.unlink()
    blob.write_bytes(damaged)
    with pytest.raises(DataLoss, match=pushed.version.blob_digest):
        await client.download("x", tmp_path / "one")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


async def test_retries_have_an_end(client: AsyncClient, door: Door) -> None:
    await door.server.stop(None)
    with pytest.raises(LoraMuxClientError, match="no answer"):
        await client.upload(FILE, "x", retries=0)


async def test_the_event_loop_is_free_while_a_file_is_hashed(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    hashing, go_on = threading.Event(), threading.Event()

    def slowly(_: Path) -> str:
        hashing.set()
        go_on.wait(20)
        return hashlib.sha256(FILE).hexdigest()

    monkeypatch.setattr("loramux_store.upload.sha256_of", slowly)
    call = door.stub.UploadAdapter(messages(FILE))
    await until(hashing.is_set)
    assert (await door.stub.ListAdapters(pb.ListAdaptersRequest())).adapters == []
    assert door.metrics.registry.get_sample_value("loramux_uploads_in_progress") == 1
    go_on.set()
    assert (await call).created
    assert door.metrics.registry.get_sample_value("loramux_uploads_in_progress") == 0


async def test_the_janitor_comes_at_the_start_and_again_and_bears_a_broken_disk(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    leftover = door.folder / "blobs" / "sha256" / "ab" / "ab"
    leftover.parent.mkdir()
    leftover.write_bytes(b"12345")
    reclaim, failed = door.store.reclaim, threading.Event()

    def fails_first() -> Any:
        if failed.is_set():
            return reclaim()
        failed.set()
        raise DiskFailed("unlink", "no")

    monkeypatch.setattr(door.store, "reclaim", fails_first)
    stop = asyncio.Event()
    janitor = asyncio.create_task(keep_clean(door.store, door.metrics, stop, period_s=0.01))
    await until(lambda: not leftover.exists())
    stop.set()
    await janitor
    assert failed.is_set()
    assert door.metrics.registry.get_sample_value("loramux_store_reclaimed_bytes_total") == 5
    assert door.metrics.registry.get_sample_value("loramux_store_catalog_faults") == 0
