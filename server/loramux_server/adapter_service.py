"""The shelf's door: messages become values, values become messages.

Takes RPCs; asks the store, whose calls run on threads of their own: they hash, parse and wait for the disk. It knows no
tensors and raises the error trees as they are (`statuses` gives them codes).
"""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from loramux.v1 import adapter_pb2, adapter_service_pb2, adapter_service_pb2_grpc
from loramux_server import adapter_messages as messages
from loramux_server import callers
from loramux_server.errors import InvalidRequest, UploadStalled, Violation
from loramux_server.metrics import Metrics
from loramux_server.tiers import Tiers
from loramux_store.errors import Refused, StoreError, UploadNotFound
from loramux_store.record import AdapterRecord, Published, VersionSummary
from loramux_store.store import Store
from loramux_store.upload import Upload

MAX_CHUNK = 1 << 20
STALL_S = 30.0  # without a message of an upload
DEFAULT_PAGE, MAX_PAGE = 50, 1000

if TYPE_CHECKING:
    import grpc.aio

    Context = grpc.aio.ServicerContext[Any, Any]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class AdapterService(adapter_service_pb2_grpc.AdapterServiceServicer):
    """Keeps adapters."""

    def __init__(self, store: Store, tiers: Tiers, metrics: Metrics) -> None:
        self._store = store
        self._tiers = tiers
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="store")
        self._checks = ThreadPoolExecutor(2, thread_name_prefix="store-check")  # minutes for gigabytes: others go on
        self._sending = set[asyncio.Task[Any]]()

    async def UploadAdapter(
        self,
        request_iterator: AsyncIterator[adapter_service_pb2.UploadAdapterRequest],
        context: "Context",
    ) -> adapter_service_pb2.UploadAdapterResponse:
        """A file becomes a version. What came stays where the upload has an id, else nothing is left of it."""
        requests = aiter(request_iterator)
        first = await _next(requests)
        if first is None or first.WhichOneof("message") != "spec":
            raise InvalidRequest((Violation("spec", "is missing, expected in the first message"),))
        with self._counting():
            upload = await self._begin(first.spec, first.offset, callers.current().who)
            try:
                while (message := await _next(requests)) is not None:
                    await self._write(upload, _chunk(message))
                return messages.upload_response(await self._commit(upload))
            finally:
                await asyncio.shield(self._call(upload.leave))

    async def WriteUploadChunk(
        self,
        request: adapter_service_pb2.WriteUploadChunkRequest,
        context: "Context",
    ) -> adapter_service_pb2.WriteUploadChunkResponse:
        """One chunk; with the last, the file becomes a version."""
        if not request.spec.upload_id:
            raise InvalidRequest((Violation("spec.upload_id", "is empty, expected an id to find the upload by"),))
        if len(request.chunk) > MAX_CHUNK:
            raise InvalidRequest((_chunk_size(request.chunk, 0),))
        if request.finish and request.offset and (state := await self._published(request.spec.upload_id)) is not None:
            return adapter_service_pb2.WriteUploadChunkResponse(
                received_bytes=state.received_bytes, result=state.result
            )
        with self._counting(left=False):
            upload = await self._begin(request.spec, request.offset, callers.current().who)
            try:
                if request.chunk:
                    await self._write(upload, request.chunk)
                response = adapter_service_pb2.WriteUploadChunkResponse(received_bytes=upload.received)
                if request.finish:
                    response.result.CopyFrom(messages.upload_response(await self._commit(upload)))
                return response
            finally:
                await asyncio.shield(self._call(upload.leave))

    async def GetUpload(
        self,
        request: adapter_service_pb2.GetUploadRequest,
        context: "Context",
    ) -> adapter_service_pb2.UploadState:
        """How far an upload has come."""
        return messages.upload_state(request.upload_id, await self._call(self._store.find_upload, request.upload_id))

    async def AbortUpload(
        self,
        request: adapter_service_pb2.AbortUploadRequest,
        context: "Context",
    ) -> adapter_service_pb2.AbortUploadResponse:
        """Throws away what came of an upload."""
        await self._call(self._store.abort_upload, request.upload_id)
        self._metrics.uploads.labels("aborted").inc()
        return adapter_service_pb2.AbortUploadResponse()

    async def DownloadAdapter(
        self,
        request: adapter_service_pb2.DownloadAdapterRequest,
        context: "Context",
    ) -> AsyncIterator[adapter_service_pb2.DownloadAdapterResponse]:
        """The bytes of a version, as they were uploaded."""
        outcome = "interrupted"
        try:
            version = await self._call(self._store.resolve, request.adapter)
            chunks = await self._call(self._store.read_blob, version, request.offset)
            yield adapter_service_pb2.DownloadAdapterResponse(version=messages.version(version))
            while chunk := await self._call(next, chunks, b""):
                yield adapter_service_pb2.DownloadAdapterResponse(chunk=chunk)
                self._metrics.download_bytes.inc(len(chunk))
            outcome = "done"
        except StoreError:
            outcome = "refused"
            raise
        finally:
            self._metrics.downloads.labels(outcome).inc()

    async def GetAdapter(
        self,
        request: adapter_service_pb2.GetAdapterRequest,
        context: "Context",
    ) -> adapter_pb2.Adapter:
        """One adapter, and the version of it that is named."""
        name, at, _ = request.name.partition("@")
        asked = await self._call(self._store.resolve, request.name) if at else None
        return self._told(await self._call(self._store.get_adapter, name), asked)

    async def ListAdapters(
        self,
        request: adapter_service_pb2.ListAdaptersRequest,
        context: "Context",
    ) -> adapter_service_pb2.ListAdaptersResponse:
        """A page of adapters."""
        page = await self._call(
            self._store.list_adapters,
            _page_size(request.page_size),
            request.page_token,
            filter=request.filter,
            order_by=request.order_by,
            deleted=request.show_deleted,
        )
        return adapter_service_pb2.ListAdaptersResponse(
            adapters=[self._told(record) for record in page.items], next_page_token=page.next_page_token
        )

    async def ListVersions(
        self,
        request: adapter_service_pb2.ListVersionsRequest,
        context: "Context",
    ) -> adapter_service_pb2.ListVersionsResponse:
        """A page of versions, newest first."""
        page = await self._call(
            self._store.list_versions, request.name, _page_size(request.page_size), request.page_token
        )
        return adapter_service_pb2.ListVersionsResponse(
            versions=[messages.version(record) for record in page.items], next_page_token=page.next_page_token
        )

    async def UpdateAdapter(
        self,
        request: adapter_service_pb2.UpdateAdapterRequest,
        context: "Context",
    ) -> adapter_pb2.Adapter:
        """Changes what people read of an adapter, and what its aliases mean."""
        change, adapter = messages.adapter_change(request), request.adapter
        return await self._changed(
            "update", self._store.update_adapter, adapter.name, change, etag=adapter.etag, who=callers.current().who
        )

    async def DeleteAdapter(
        self,
        request: adapter_service_pb2.DeleteAdapterRequest,
        context: "Context",
    ) -> adapter_pb2.Adapter:
        """Takes an adapter off the shelf, and out of memory where nobody uses it any more."""
        versions = (await self._call(self._store.list_versions, request.name, MAX_PAGE)).items
        adapter = await self._changed(
            "delete", self._store.delete_adapter, request.name, etag=request.etag, who=callers.current().who
        )
        self._tiers.changed(deleted=[version.digest for version in versions])
        return adapter

    async def UndeleteAdapter(
        self,
        request: adapter_service_pb2.UndeleteAdapterRequest,
        context: "Context",
    ) -> adapter_pb2.Adapter:
        """Puts a deleted adapter back."""
        return await self._changed(
            "undelete", self._store.undelete_adapter, request.name, etag=request.etag, who=callers.current().who
        )

    async def PreloadAdapter(
        self,
        request: adapter_service_pb2.PreloadAdapterRequest,
        context: "Context",
    ) -> adapter_service_pb2.PreloadAdapterResponse:
        """Brings a version into a tier."""
        version = await self._tiers.preload(request.adapter, messages.tier(request.tier))
        return messages.preloaded(version, self._tiers.of(version.digest))

    async def PinAdapter(
        self,
        request: adapter_service_pb2.PinAdapterRequest,
        context: "Context",
    ) -> adapter_pb2.Adapter:
        """Keeps what a reference means in a tier."""
        record = await self._tiers.pin(request.adapter, messages.tier(request.tier), callers.current().who)
        self._metrics.adapter_changes.labels("pin").inc()
        return self._told(record)

    async def UnpinAdapter(
        self,
        request: adapter_service_pb2.UnpinAdapterRequest,
        context: "Context",
    ) -> adapter_pb2.Adapter:
        """Keeps it no longer."""
        record = await self._tiers.unpin(request.adapter, callers.current().who)
        self._metrics.adapter_changes.labels("unpin").inc()
        return self._told(record)

    async def ListAuditEvents(
        self,
        request: adapter_service_pb2.ListAuditEventsRequest,
        context: "Context",
    ) -> adapter_service_pb2.ListAuditEventsResponse:
        """A page of the audit log, newest first."""
        page = await self._call(
            self._store.list_events, _page_size(request.page_size), request.page_token, request.adapter
        )
        return adapter_service_pb2.ListAuditEventsResponse(
            events=map(messages.audit_event, page.items), next_page_token=page.next_page_token
        )

    async def _changed(
        self, action: str, change: Callable[P, AdapterRecord], *args: P.args, **kwargs: P.kwargs
    ) -> adapter_pb2.Adapter:
        record = await self._call(change, *args, **kwargs)
        self._metrics.adapter_changes.labels(action).inc()
        self._tiers.changed()
        return self._told(record)

    def _told(self, record: AdapterRecord, asked: VersionSummary | None = None) -> adapter_pb2.Adapter:
        return messages.adapter(record, self._tiers.of(record.latest_version.digest), asked)

    async def _begin(self, spec: adapter_service_pb2.UploadSpec, offset: int, who: str) -> Upload:
        asked = messages.upload_spec(spec)
        begun = asyncio.ensure_future(
            self._call(self._store.begin_upload, asked, spec.upload_id or None, offset, who=who)
        )
        try:
            return await asyncio.shield(begun)
        except asyncio.CancelledError:  # the thread goes on, and nobody else would let go of the part
            with suppress(StoreError):
                await self._call((await begun).leave)
            raise

    async def _write(self, upload: Upload, chunk: bytes) -> None:
        if (meter := callers.current().meter) is not None:
            meter.upload(len(chunk))
        await self._call(upload.write, chunk)
        self._metrics.upload_bytes.inc(len(chunk))

    async def _commit(self, upload: Upload) -> Published:
        """Once begun it goes on even if the call is cancelled: whoever asks for the upload then hears how it ended."""
        loop, committing = asyncio.get_running_loop(), self._checks.submit(upload.commit)
        committing.add_done_callback(lambda _: loop.call_soon_threadsafe(self._tiers.changed))
        published = await asyncio.wrap_future(committing)
        outcome = "checked" if published.version is None else "created" if published.created else "unchanged"
        self._metrics.uploads.labels(outcome).inc()
        return published

    async def _published(self, upload_id: str) -> adapter_service_pb2.WriteUploadChunkResponse | None:
        """The answer of an upload that has become a version."""
        try:
            found = await self._call(self._store.find_upload, upload_id)
        except UploadNotFound:
            return None
        if not isinstance(found, Published) or found.version is None:
            return None
        size, result = found.version.size_bytes, messages.upload_response(found)
        return adapter_service_pb2.WriteUploadChunkResponse(received_bytes=size, result=result)

    @contextmanager
    def _counting(self, *, left: bool = True) -> Generator[None]:
        """Notes how a call that sends bytes ends, other than with a version; `left`: also that it was left."""
        started, task = time.monotonic(), asyncio.current_task()
        assert task is not None
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        self._metrics.uploads_in_progress.inc()
        try:
            yield
        except StoreError as error:
            self._metrics.uploads.labels("refused" if isinstance(error, Refused) else "failed").inc()
            raise
        except BaseException:
            if left:
                self._metrics.uploads.labels("interrupted").inc()
            raise
        finally:
            self._metrics.uploads_in_progress.dec()
            self._metrics.upload_seconds.observe(time.monotonic() - started)

    async def close(self) -> None:
        """Ends the store's threads, once all calls have let go of their uploads (a stopped server does not wait)."""
        if self._sending:
            await asyncio.wait(self._sending)
        for threads in (self._checks, self._threads):
            await asyncio.to_thread(threads.shutdown)

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, functools.partial(function, *args, **kwargs))


def _page_size(asked: int) -> int:
    return min(asked, MAX_PAGE) if asked else DEFAULT_PAGE


async def _next(requests: AsyncIterator[R]) -> R | None:
    """The next message; None at the end.

    Raises:
        UploadStalled: where none comes for so long that the client is likely to be gone; it could not come back
            before its old call has ended.
    """
    try:
        async with asyncio.timeout(STALL_S):
            return await anext(requests, None)
    except TimeoutError:
        raise UploadStalled(f"no message of this upload came for {STALL_S:g} s") from None


def _chunk(message: adapter_service_pb2.UploadAdapterRequest) -> bytes:
    if message.WhichOneof("message") != "chunk":
        raise InvalidRequest((Violation("chunk", "is missing, expected in every message after the first"),))
    if not 0 < len(message.chunk) <= MAX_CHUNK:
        raise InvalidRequest((_chunk_size(message.chunk, 1),))
    return message.chunk


def _chunk_size(chunk: bytes, least: int) -> Violation:
    return Violation("chunk", f"has {len(chunk)} bytes, expected {least} to {MAX_CHUNK}")
