"""The sync client.

Takes: a server's address, and plain values to ask with. Gives: plain values, or an error of the
tree in errors.py. Does not know what a message looks like (the *_messages.py do) or what a call is
called (rpcs.py does). aio.py is its asyncio twin.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from os import PathLike
from types import TracebackType
from typing import Any, Unpack
from uuid import uuid4

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from loramux.v1 import adapter_service_pb2, generation_pb2, generation_service_pb2
from loramux_client import adapter_messages, picture_messages, rpcs, shelf, tier_messages
from loramux_client.adapter_messages import Item, Page
from loramux_client.channel import DEFAULT_TIMEOUT, SPREAD, STAY, call_metadata, channel_options, refuse_exposure
from loramux_client.download_target import Target
from loramux_client.errors import LoraMuxClientError, NotFound
from loramux_client.patience import RETRIES, Patience, Turn, closed_while_waiting
from loramux_client.pictures import Asking, Event, Generation
from loramux_client.rpcs import Out, Req, Res, Rpc
from loramux_client.server_info import Health, ServerInfo
from loramux_client.status import translated
from loramux_client.upload_source import Outgoing, Source, open_source


class Client:
    """Talks to a server; a context manager, safe to use from several threads.

    A target may name several servers (`dns:///loramux:50051`): each call then goes to the next of them, and calls about
    adapters, of which every server has its own, to one that is there.

    timeout: seconds for each call, None for no limit; every method may be given its own. retries: how often a request
    for pictures is made again that was refused with a time to come back, after that time and within its timeout.
    credentials: for TLS, see `tls_credentials`; without, the connection is plain. who: told to the server's audit log.
    token: proves who calls; never sent to another machine without TLS.
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
        self._metadata = call_metadata(who, token)
        self._closed = threading.Event()
        self._spread, self._staying = (
            grpc.insecure_channel(target, options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options)
            for options in (channel_options(target, balancing) for balancing in (SPREAD, STAY))
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections and every call on them."""
        self._closed.set()
        self._spread.close()
        self._staying.close()

    def generate(self, prompt: str, *, timeout: float | None = None, **asking: Unpack[Asking]) -> Generation:
        """Draws, and returns when all pictures are there. `Asking` says what may be asked. Where the connection breaks,
        it is asked again under its request_id, so that it is drawn once."""
        asking.setdefault("request_id", str(uuid4()))
        request = picture_messages.generate_request(prompt, **asking)
        turn = Turn(self._retries, self._limit(timeout), repeatable=bool(request.request_id))
        while True:
            try:
                return self._ask(rpcs.GENERATE, request, turn.seconds_left)
            except LoraMuxClientError as error:
                self._pause(turn.pause(error), error)

    def stream(self, prompt: str, *, timeout: float | None = None, **asking: Unpack[Asking]) -> Generator[Event]:
        """Draws, and tells what happens as it happens. Closing the iterator cancels the request."""
        request = picture_messages.generate_request(prompt, **asking)
        return self._told(request, Turn(self._retries, self._limit(timeout)))

    def upload(
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
        name, source = shelf.upload_name(content, name), open_source(content)
        spec = adapter_messages.upload_spec(source, name, **options)
        patience = Patience(retries, self._closed, self._limit(timeout))
        earlier = self._find(spec.upload_id, patience)
        found = earlier
        while True:
            reached = found.received if found is not None and found.ended is None else 0
            try:
                return self._send(spec, source, reached, progress, timeout)
            except LoraMuxClientError as error:
                patience.wait(error, reached)
            found = self._find(spec.upload_id, patience)
            if found is not None and found.ended is not None and found != earlier:
                return found.ended  # only the answer was lost

    def get_upload(self, upload_id: str, *, timeout: float | None = None) -> shelf.UploadState:
        """How far an upload has come."""
        return self._ask(rpcs.GET_UPLOAD, adapter_messages.get_upload_request(upload_id), timeout)

    def abort_upload(self, upload_id: str, *, timeout: float | None = None) -> None:
        """Throws away what came of an upload."""
        self._ask(rpcs.ABORT_UPLOAD, adapter_messages.abort_upload_request(upload_id), timeout)

    def download(
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
        chunk.
        """
        patience = Patience(retries, self._closed, self._limit(timeout))
        with Target(to, progress) as target:
            while True:
                request = adapter_messages.download_request(target.source(adapter), target.received)
                try:
                    with closing(self._events(rpcs.DOWNLOAD_ADAPTER, request, timeout)) as items:
                        for item in items:
                            target.take(item)
                    return target.finish()
                except LoraMuxClientError as error:
                    patience.wait(error, target.received)

    def list_adapters(
        self, *, filter: str = "", order_by: str = "", deleted: bool = False, timeout: float | None = None
    ) -> Iterator[shelf.Adapter]:
        """Adapters that a filter selects (`layout=sd1 kind=lora labels.team=art words`), all without one.

        order_by: name, create_time or update_time, with " desc" for the other way round. deleted: those too. Pages are
        fetched as they are reached.
        """
        request = adapter_messages.list_adapters_request(filter, order_by, deleted)
        return self._pages(rpcs.LIST_ADAPTERS, request, timeout)

    def get_adapter(self, name: str, *, timeout: float | None = None) -> shelf.Adapter:
        """One adapter; asked for as name@number or name@alias, with that version."""
        request = adapter_messages.get_adapter_request(name)
        return self._ask(rpcs.GET_ADAPTER, request, timeout)

    def list_versions(self, name: str, *, timeout: float | None = None) -> Iterator[shelf.AdapterVersion]:
        """All versions of an adapter, newest first; pages as for list_adapters."""
        request = adapter_messages.list_versions_request(name)
        return self._pages(rpcs.LIST_VERSIONS, request, timeout)

    def update_adapter(
        self, name: str, *, etag: str = "", timeout: float | None = None, **changes: Unpack[shelf.AdapterChanges]
    ) -> shelf.Adapter:
        """Says anew what is given of an adapter; with an etag only if it is still as it was (else Aborted)."""
        request = adapter_messages.update_adapter_request(name, etag, **changes)
        return self._ask(rpcs.UPDATE_ADAPTER, request, timeout)

    def delete_adapter(self, name: str, *, etag: str = "", timeout: float | None = None) -> shelf.Adapter:
        """Takes an adapter off the shelf; pictures being drawn keep it."""
        request = adapter_messages.delete_adapter_request(name, etag)
        return self._ask(rpcs.DELETE_ADAPTER, request, timeout)

    def undelete_adapter(self, name: str, *, etag: str = "", timeout: float | None = None) -> shelf.Adapter:
        """Puts a deleted adapter back as it was."""
        request = adapter_messages.undelete_adapter_request(name, etag)
        return self._ask(rpcs.UNDELETE_ADAPTER, request, timeout)

    def preload_adapter(self, adapter: str, tier: str = "device", *, timeout: float | None = None) -> shelf.Preloaded:
        """Has an adapter (`name`, `name@version`, `name@alias`) brought into a tier, host or device; returns when it is
        there. It stays until others need the room."""
        request = tier_messages.preload_request(adapter, tier)
        return self._ask(rpcs.PRELOAD_ADAPTER, request, timeout)

    def pin_adapter(self, adapter: str, tier: str = "device", *, timeout: float | None = None) -> shelf.Adapter:
        """Keeps what a reference means in a tier, host or device: now, whenever that changes, and after a restart.
        ResourceExhausted where pins would take more than their share of the tier."""
        request = tier_messages.pin_request(adapter, tier)
        return self._ask(rpcs.PIN_ADAPTER, request, timeout)

    def unpin_adapter(self, adapter: str, *, timeout: float | None = None) -> shelf.Adapter:
        """Keeps it no longer; the reference is spelled as it was pinned, else NotFound."""
        return self._ask(rpcs.UNPIN_ADAPTER, tier_messages.unpin_request(adapter), timeout)

    def list_audit_events(self, adapter: str = "", *, timeout: float | None = None) -> Iterator[shelf.AuditEvent]:
        """Who changed what and when, newest first; of one adapter, deleted or not, where it is named."""
        request = adapter_messages.list_audit_events_request(adapter)
        return self._pages(rpcs.LIST_AUDIT_EVENTS, request, timeout)

    def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """What the server is and can do."""
        request = generation_service_pb2.GetServerInfoRequest()
        return self._ask(rpcs.GET_SERVER_INFO, request, timeout)

    def health(self, service: str = "", *, timeout: float | None = None) -> Health:
        """How a service feels; without a name, the whole server."""
        return self._ask(rpcs.CHECK_HEALTH, StringValue(value=service), timeout)

    def _find(self, upload_id: str, patience: Patience) -> shelf.UploadState | None:
        """What the server knows of an upload; None if nothing."""
        while True:
            try:
                return self.get_upload(upload_id)
            except NotFound:
                return None
            except LoraMuxClientError as error:
                patience.wait(error, 0)

    def _send(
        self,
        spec: adapter_service_pb2.UploadSpec,
        source: Source,
        offset: int,
        progress: shelf.Progress | None,
        timeout: float | None,
    ) -> shelf.Upload:
        messages = adapter_messages.upload_messages(source, spec, offset)
        outgoing, rpc = Outgoing(messages, offset, source.size, progress), rpcs.UPLOAD_ADAPTER
        with translated(self.target):
            method = self._channel(rpc).stream_unary(rpc.path, rpc.encode, rpc.decode)
            call = method.future(iter(outgoing), self._limit(timeout), self._metadata)
            try:
                answer = call.result()
            finally:
                call.cancel()
                outgoing.raise_failure()
        return rpc.read(answer)

    def _channel(self, rpc: Rpc[Any, Any, Any]) -> grpc.Channel:
        return self._staying if rpc.of_a_shelf else self._spread

    def _told(self, request: generation_pb2.GenerateRequest, turn: Turn) -> Generator[Event]:
        """A stream; one that is refused before it tells anything begins anew."""
        begun = False
        while True:
            try:
                with closing(self._events(rpcs.GENERATE_STREAM, request, turn.seconds_left)) as events:
                    for event in events:
                        begun = True
                        yield event
                return
            except LoraMuxClientError as error:
                if begun:
                    raise
                self._pause(turn.pause(error), error)

    def _pause(self, seconds: float, error: LoraMuxClientError) -> None:
        if self._closed.wait(seconds):
            raise closed_while_waiting() from error

    def _limit(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout

    def _ask(self, rpc: Rpc[Req, Res, Out], request: Req, timeout: float | None) -> Out:
        with translated(self.target):
            method = self._channel(rpc).unary_unary(rpc.path, rpc.encode, rpc.decode)
            # A future, so that Ctrl-C while waiting cancels the call on the server too.
            call = method.future(request, self._limit(timeout), self._metadata)
            try:
                answer = call.result()
            finally:
                call.cancel()
        return rpc.read(answer)

    def _events(self, rpc: Rpc[Req, Res, Out | None], request: Req, timeout: float | None) -> Generator[Out]:
        with translated(self.target):
            method = self._channel(rpc).unary_stream(rpc.path, rpc.encode, rpc.decode)
            call = method(request, self._limit(timeout), self._metadata)
            try:
                for message in call:
                    if (event := rpc.read(message)) is not None:
                        yield event
            finally:
                call.cancel()

    def _pages(self, rpc: Rpc[Req, Res, Page[Item]], request: Req, timeout: float | None) -> Iterator[Item]:
        while True:
            page = self._ask(rpc, request, timeout)
            yield from page.items
            if not page.next_token:
                return
            request = page.after(request)
