"""The shelf's door: messages become values, values become messages.

Takes RPCs; asks the store, whose calls run on threads of their own: they hash, parse and wait for the disk. It knows no
tensors and raises the error trees as they are (`interceptors` gives them status codes).
"""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from loramux.v1 import adapter_pb2, adapter_service_pb2, adapter_service_pb2_grpc
from loramux_server import messages
from loramux_server.errors import InvalidRequest, Violation
from loramux_server.metrics import Metrics
from loramux_store.store import Store

MAX_CHUNK = 1 << 20
DEFAULT_PAGE, MAX_PAGE = 50, 1000

if TYPE_CHECKING:
    import grpc.aio

    Context = grpc.aio.ServicerContext[Any, Any]

P = ParamSpec("P")
T = TypeVar("T")


class AdapterService(adapter_service_pb2_grpc.AdapterServiceServicer):
    """Keeps adapters."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="store")

    async def UploadAdapter(
        self,
        request_iterator: AsyncIterator[adapter_service_pb2.UploadAdapterRequest],
        context: "Context",
    ) -> adapter_service_pb2.UploadAdapterResponse:
        """A file becomes a version, or nothing is left of it."""
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("message") != "spec":
            raise InvalidRequest((Violation("spec", "is missing, expected in the first message"),))
        started = time.monotonic()
        upload = await self._call(self._store.begin_upload, messages.upload_spec(first.spec))
        try:
            async for message in request_iterator:
                await self._call(upload.write, _chunk(message))
                self._metrics.upload_bytes.inc(len(message.chunk))
            return messages.upload_response(await self._call(upload.commit))
        finally:
            await asyncio.shield(self._call(upload.abort))  # nothing to abort after a commit
            self._metrics.upload_seconds.observe(time.monotonic() - started)

    async def GetAdapter(
        self,
        request: adapter_service_pb2.GetAdapterRequest,
        context: "Context",
    ) -> adapter_pb2.Adapter:
        """One adapter by name."""
        return messages.adapter(await self._call(self._store.get_adapter, request.name))

    async def ListAdapters(
        self,
        request: adapter_service_pb2.ListAdaptersRequest,
        context: "Context",
    ) -> adapter_service_pb2.ListAdaptersResponse:
        """A page of adapters."""
        page = await self._call(self._store.list_adapters, _page_size(request.page_size), request.page_token)
        return adapter_service_pb2.ListAdaptersResponse(
            adapters=[messages.adapter(record) for record in page.items], next_page_token=page.next_page_token
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

    async def DeleteAdapter(
        self,
        request: adapter_service_pb2.DeleteAdapterRequest,
        context: "Context",
    ) -> adapter_pb2.Adapter:
        """Takes an adapter off the shelf."""
        return messages.adapter(await self._call(self._store.delete_adapter, request.name))

    def close(self) -> None:
        """Ends the store's threads."""
        self._threads.shutdown(wait=True)

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, functools.partial(function, *args, **kwargs))


def _page_size(asked: int) -> int:
    return min(asked, MAX_PAGE) if asked else DEFAULT_PAGE


def _chunk(message: adapter_service_pb2.UploadAdapterRequest) -> bytes:
    if message.WhichOneof("message") != "chunk":
        raise InvalidRequest((Violation("chunk", "is missing, expected in every message after the first"),))
    if not 0 < len(message.chunk) <= MAX_CHUNK:
        raise InvalidRequest((Violation("chunk", f"has {len(message.chunk)} bytes, expected 1 to {MAX_CHUNK}"),))
    return message.chunk
