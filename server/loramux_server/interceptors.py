"""Around every RPC: callers are let in or not, errors become statuses with details, calls are followed to their end.

Takes handlers and a gate; gives handlers. It knows which errors turn a call away, and no message of ours; `statuses`
knows the codes.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from loramux_server import callers, errors
from loramux_server.calls import Call, Writing, count_unknown
from loramux_server.gate import Entry, Gate
from loramux_server.metrics import Metrics
from loramux_server.open_calls import OpenCalls
from loramux_server.statuses import failure_of
from loramux_server.tracing import Tracing
from loramux_store import errors as shelf

_TURNED_AWAY = (
    errors.Busy,
    errors.TooLate,
    errors.Draining,
    errors.Incompatible,
    errors.InvalidRequest,
    errors.OverLimit,
    errors.Unknown,
    errors.Forbidden,
    errors.PinTooLarge,
)


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps all four kinds of handlers. open_calls: has those of the services that know our errors."""

    def __init__(
        self,
        metrics: Metrics,
        gate: Gate | None = None,
        tracing: Tracing | None = None,
        open_calls: OpenCalls | None = None,
    ) -> None:
        self._metrics = metrics
        self._tracing = tracing
        self._gate = gate or Gate()
        self._open = open_calls or OpenCalls()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler, wrapped; None (unknown methods) stays None. Whether the call is let in is asked here, because a
        unary request is received and parsed, whole, before its handler is called."""
        handler = await continuation(handler_call_details)
        if handler is None:
            count_unknown(self._metrics)
            return None
        path = handler_call_details.method
        try:
            entry = self._gate.enter(path, handler_call_details.invocation_metadata or ())
        except Exception as refusal:
            return self._refusing(handler, path, refusal)
        streams = handler.request_streaming
        if handler.response_streaming:
            kind = "stream_stream" if streams else "unary_stream"
            behaviour = getattr(handler, kind)
            if inspect.iscoroutinefunction(behaviour):  # answers by context.write, as the health service does
                wrapped: Any = self._unary(behaviour, path, entry, streams=streams, writes=True)
            else:
                wrapped = self._streaming(behaviour, path, entry, streams=streams)
        else:
            kind = "stream_unary" if streams else "unary_unary"
            wrapped = self._unary(getattr(handler, kind), path, entry, streams=streams, writes=False)
        return handler._replace(request_deserializer=_lenient(handler.request_deserializer), **{kind: wrapped})

    def _refusing(self, handler: Any, path: str, refusal: Exception) -> Any:
        """A handler that ends the call and reads nothing of it: one of a stream of requests, which are received when
        they are asked for."""

        async def call(_requests: Any, context: Any) -> None:
            with self._following(path, context) as record:
                await self._abort(record, context, refusal)

        to = "stream" if handler.response_streaming else "unary"
        return getattr(grpc, f"stream_{to}_rpc_method_handler")(call)

    def _unary(self, behaviour: Any, path: str, entry: Entry, *, streams: bool, writes: bool) -> Any:
        async def call(request: Any, context: Any) -> Any:
            with self._following(path, context) as record:
                try:
                    record.caller = _answer(entry, context)
                    if writes:
                        return await behaviour(record.counted(_parsed(request), streams), Writing(context, record))
                    with self._open.answering():
                        response = await behaviour(record.counted(_parsed(request), streams), context)
                    record.sent()
                    return response
                except Exception as error:
                    await self._abort(record, context, error)

        return call

    def _streaming(self, behaviour: Any, path: str, entry: Entry, *, streams: bool) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._following(path, context) as record:
                try:
                    record.caller = _answer(entry, context)
                    asked = record.counted(_parsed(request), streams)
                    with self._open.answering():
                        async with aclosing(behaviour(asked, context)) as responses:
                            async for response in responses:
                                record.sent()
                                yield response
                except Exception as error:
                    await self._abort(record, context, error)

        return call

    def _following(self, path: str, context: Any) -> Call:
        service, _, method = path.lstrip("/").partition("/")
        return Call(self._metrics, self._tracing, service, method, context)

    async def _abort(self, call: Call, context: Any, error: Exception) -> None:
        """Ends the RPC with the status of the error."""
        if isinstance(error, grpc.aio.AbortError):  # a handler of another library chose its own status
            call.end(context.code().name if context.code() else "UNKNOWN")
            raise error
        if isinstance(error, shelf.Refused):
            self._metrics.upload_failures.labels(error.reason.partition(":")[0]).inc()
        failure = failure_of(error)
        if isinstance(error, _TURNED_AWAY):
            self._metrics.rejected.labels(failure.reason).inc()
        call.end(failure.code.name, failure.reason)
        await context.abort(failure.code, failure.status.message, failure.trailers)


def _answer(entry: Entry, context: Any) -> str | None:
    """The caller's verified name; from here on it is the current one."""
    names = context.auth_context().get("x509_common_name") or ()
    certified = next((bytes(name).decode(errors="replace") for name in names), None)
    caller = entry.caller(context.peer(), certified)
    callers.answering(caller)
    return caller.holder


class _Malformed:
    """In place of a message whose bytes are none."""


def _lenient(parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """gRPC ends a call whose message it cannot parse with UNKNOWN and the parser's words, before anybody is asked.
    Without a parser messages are bytes, and none is malformed."""
    if parse is None:
        return None

    def parsed(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return _Malformed()

    return parsed


def _parsed(request: Any) -> Any:
    """The message, or the stream of them.

    Raises:
        InvalidRequest: where it is none, of a stream as it comes.
    """
    if isinstance(request, _Malformed):
        raise errors.InvalidRequest((errors.Violation("request", "cannot be parsed, expected a message of its type"),))
    return _parsed_all(cast("AsyncIterator[Any]", request)) if isinstance(request, AsyncIterator) else request


async def _parsed_all(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _parsed(request)
