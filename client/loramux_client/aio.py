"""The asyncio client.

Takes: a server's address, and plain values to ask with. Gives: plain values, or an error of the
tree in errors.py. Does not know what a message looks like or what a call is called. client.py is
its sync twin: the same methods, awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from os import PathLike
from types import TracebackType
from typing import Any, Unpack
from uuid import uuid4

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from loramux.v1 import generation_pb2, generation_service_pb2
from loramux_client import adapter_messages, picture_messages, rpcs, shelf, tier_messages
from loramux_client.adapter_messages import Item, Page
from loramux_client.channel import DEFAULT_TIMEOUT, SPREAD, STAY, call_metadata, channel_options, refuse_exposure
from loramux_client.client import Client
from loramux_client.errors import LoraMuxClientError
from loramux_client.patience import RETRIES, Turn, closed_while_waiting
from loramux_client.pictures import Asking, Event, Generation
from loramux_client.rpcs import Out, Req, Res, Rpc
from loramux_client.server_info import Health, ServerInfo
from loramux_client.status import translated


class AsyncClient:
    """Talks to a server from one event loop; an async context manager, made inside that loop.

    A target may name several servers (`dns:///loramux:50051`): each call then goes to the next of them, and calls about
    adapters, of which every server has its own, to one that is there.

    timeout: seconds for each call, None for no limit; every method may be given its own. retries: how often a request
    for pictures is made again that was refused with a time to come back, after that time and within its timeout.
    credentials: for TLS, see `tls_credentials`; without, the connection is plain. who: told to the server's audit log.
    token: proves who calls; never sent to another machine without TLS. Cancelling a task cancels its call.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        retries: int = RETRIES,
        credentials: grpc.ChannelCredentials | None = None,
        who: str | None = None,
        token: str | None = None,
    ) -> None:
        refuse_exposure(target, token, credentials)
        self.target = target
        self._timeout = timeout
        self._retries = retries
        self._who = who
        self._token = token
        self._metadata = call_metadata(who, token)
        self._credentials = credentials
        self._closed = asyncio.Event()
        self._spread, self._staying = (
            grpc.aio.insecure_channel(target, options)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options)
            for options in (channel_options(target, balancing) for balancing in (SPREAD, STAY))
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connections and every call on them."""
        self._closed.set()
        await asyncio.gather(self._spread.close(), self._staying.close())

    async def generate(self, prompt: str, *, timeout: float | None = None, **asking: Unpack[Asking]) -> Generation:
        """Draws, and returns when all pictures are there. `Asking` says what may be asked. Where the connection breaks,
        it is asked again under its request_id, so that it is drawn once."""
        asking.setdefault("request_id", str(uuid4()))
        request = picture_messages.generate_request(prompt, **asking)
        turn = Turn(self._retries, self._limit(timeout), repeatable=bool(request.request_id))
        while True:
            try:
                return await self._ask(rpcs.GENERATE, request, turn.seconds_left)
            except LoraMuxClientError as error:
                await self._pause(turn.pause(error), error)

    def stream(self, prompt: str, *, timeout: float | None = None, **asking: Unpack[Asking]) -> AsyncGenerator[Event]:
        """Draws, and tells what happens as it happens. Closing the iterator cancels the request."""
        request = picture_messages.generate_request(prompt, **asking)
        return self._told(request, Turn(self._retries, self._limit(timeout)))

    async def upload(
        self,
        content: str | PathLike[str] | bytes,
        name: str | None = None,
        *,
        progress: shelf.Progress | None = None,
        timeout: float | None = None,
        retries: int = RETRIES,
        **options: Unpack[shelf.UploadOptions],
    ) -> shelf.Upload:
        """Puts a safetensors file on the shelf; without a name, the file's own is made valid.

        Where the server holds a part of the same upload already, from a break or from an earlier try, only the rest is
        sent. timeout is of each try; retries: how many in a row may fail without a byte of progress before the error is
        raised. progress is called from another thread.
        """
        # grpc.aio loses the server's answer where that comes before the last chunk (grpc#36066), and
        # files are read off the loop anyway: so the sync client sends, in a thread. Leaving the
        # block, for example because the task is cancelled, ends the call.
        with self._sync() as client:
            return await asyncio.to_thread(
                client.upload, content, name, progress=progress, timeout=timeout, retries=retries, **options
            )

    async def get_upload(self, upload_id: str, *, timeout: float | None = None) -> shelf.UploadState:
        """How far an upload has come."""
        return await self._ask(rpcs.GET_UPLOAD, adapter_messages.get_upload_request(upload_id), timeout)

    async def abort_upload(self, upload_id: str, *, timeout: float | None = None) -> None:
        """Throws away what came of an upload."""
        await self._ask(rpcs.ABORT_UPLOAD, adapter_messages.abort_upload_request(upload_id), timeout)

    async def download(
        self,
        adapter: str,
        to: str | PathLike[str],
        *,
        progress: shelf.Progress | None = None,
        timeout: float | None = None,
        retries: int = RETRIES,
    ) -> shelf.AdapterVersion:
        """Writes the exact bytes of an adapter (`name`, `name@version`, `name@alias`) to a file.

        An earlier file is replaced once all are right. timeout and retries as for upload; progress is called for every
        chunk, from another thread.
        """
        with self._sync() as client:  # files are written off the loop
            return await asyncio.to_thread(
                client.download, adapter, to, progress=progress, timeout=timeout, retries=retries
            )

    def list_adapters(
        self, *, filter: str = "", order_by: str = "", deleted: bool = False, timeout: float | None = None
    ) -> AsyncIterator[shelf.Adapter]:
        """Adapters that a filter selects (`layout=sd1 kind=lora labels.team=art words`), all without one.

        order_by: name, create_time or update_time, with " desc" for the other way round. deleted: those too. Pages are
        fetched as they are reached.
        """
        request = adapter_messages.list_adapters_request(filter, order_by, deleted)
        return self._pages(rpcs.LIST_ADAPTERS, request, timeout)

    async def get_adapter(self, name: str, *, timeout: float | None = None) -> shelf.Adapter:
        """One adapter; asked for as name@number or name@alias, with that version."""
        request = adapter_messages.get_adapter_request(name)
        return await self._ask(rpcs.GET_ADAPTER, request, timeout)

    def list_versions(self, name: str, *, timeout: float | None = None) -> AsyncIterator[shelf.AdapterVersion]:
        """All versions of an adapter, newest first; pages as for list_adapters."""
        request = adapter_messages.list_versions_request(name)
        return self._pages(rpcs.LIST_VERSIONS, request, timeout)

    async def update_adapter(
        self, name: str, *, etag: str = "", timeout: float | None = None, **changes: Unpack[shelf.AdapterChanges]
    ) -> shelf.Adapter:
        """Says anew what is given of an adapter; with an etag only if it is still as it was (else Aborted)."""
        request = adapter_messages.update_adapter_request(name, etag, **changes)
        return await self._ask(rpcs.UPDATE_ADAPTER, request, timeout)

    async def delete_adapter(self, name: str, *, etag: str = "", timeout: float | None = None) -> shelf.Adapter:
        """Takes an adapter off the shelf; pictures being drawn keep it."""
        request = adapter_messages.delete_adapter_request(name, etag)
        return await self._ask(rpcs.DELETE_ADAPTER, request, timeout)

    async def undelete_adapter(self, name: str, *, etag: str = "", timeout: float | None = None) -> shelf.Adapter:
        """Puts a deleted adapter back as it was."""
        request = adapter_messages.undelete_adapter_request(name, etag)
        return await self._ask(rpcs.UNDELETE_ADAPTER, request, timeout)

    async def preload_adapter(
        self, adapter: str, tier: str = "device", *, timeout: float | None = None
    ) -> shelf.Preloaded:
        """Has an adapter (`name`, `name@version`, `name@alias`) brought into a tier, host or device; returns when it is
        there. It stays until others need the room."""
        request = tier_messages.preload_request(adapter, tier)
        return await self._ask(rpcs.PRELOAD_ADAPTER, request, timeout)

    async def pin_adapter(self, adapter: str, tier: str = "device", *, timeout: float | None = None) -> shelf.Adapter:
        """Keeps what a reference means in a tier, host or device: now, whenever that changes, and after a restart.
        ResourceExhausted where pins would take more than their share of the tier."""
        request = tier_messages.pin_request(adapter, tier)
        return await self._ask(rpcs.PIN_ADAPTER, request, timeout)

    async def unpin_adapter(self, adapter: str, *, timeout: float | None = None) -> shelf.Adapter:
        """Keeps it no longer; the reference is spelled as it was pinned, else NotFound."""
        return await self._ask(rpcs.UNPIN_ADAPTER, tier_messages.unpin_request(adapter), timeout)

    def list_audit_events(self, adapter: str = "", *, timeout: float | None = None) -> AsyncIterator[shelf.AuditEvent]:
        """Who changed what and when, newest first; of one adapter, deleted or not, where it is named."""
        request = adapter_messages.list_audit_events_request(adapter)
        return self._pages(rpcs.LIST_AUDIT_EVENTS, request, timeout)

    async def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """What the server is and can do."""
        request = generation_service_pb2.GetServerInfoRequest()
        return await self._ask(rpcs.GET_SERVER_INFO, request, timeout)

    async def health(self, service: str = "", *, timeout: float | None = None) -> Health:
        """How a service feels; without a name, the whole server."""
        return await self._ask(rpcs.CHECK_HEALTH, StringValue(value=service), timeout)

    def _sync(self) -> Client:
        return Client(
            self.target, timeout=self._timeout, credentials=self._credentials, who=self._who, token=self._token
        )

    def _channel(self, rpc: Rpc[Any, Any, Any]) -> grpc.aio.Channel:
        return self._staying if rpc.of_a_shelf else self._spread

    async def _told(self, request: generation_pb2.GenerateRequest, turn: Turn) -> AsyncGenerator[Event]:
        """A stream; one that is refused before it tells anything begins anew."""
        begun = False
        while True:
            try:
                async with aclosing(self._events(rpcs.GENERATE_STREAM, request, turn.seconds_left)) as events:
                    async for event in events:
                        begun = True
                        yield event
                return
            except LoraMuxClientError as error:
                if begun:
                    raise
                await self._pause(turn.pause(error), error)

    async def _pause(self, seconds: float, error: LoraMuxClientError) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), seconds)
            raise closed_while_waiting() from error

    def _limit(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout

    async def _ask(self, rpc: Rpc[Req, Res, Out], request: Req, timeout: float | None) -> Out:
        with translated(self.target):
            method = self._channel(rpc).unary_unary(rpc.path, rpc.encode, rpc.decode)
            call = method(request, timeout=self._limit(timeout), metadata=self._metadata)
            try:
                answer = await call
            finally:
                call.cancel()  # an abandoned call is never collected (grpc#43462)
        return rpc.read(answer)

    async def _events(self, rpc: Rpc[Req, Res, Out | None], request: Req, timeout: float | None) -> AsyncGenerator[Out]:
        with translated(self.target):
            method = self._channel(rpc).unary_stream(rpc.path, rpc.encode, rpc.decode)
            call = method(request, timeout=self._limit(timeout), metadata=self._metadata)
            try:
                async for message in call:
                    if (event := rpc.read(message)) is not None:
                        yield event
            finally:
                call.cancel()

    async def _pages(self, rpc: Rpc[Req, Res, Page[Item]], request: Req, timeout: float | None) -> AsyncIterator[Item]:
        while True:
            page = await self._ask(rpc, request, timeout)
            for item in page.items:
                yield item
            if not page.next_token:
                return
            request = page.after(request)
