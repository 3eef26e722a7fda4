"""Around every RPC: callers are let in or not, errors become statuses with details, calls are followed to their end.

Takes handlers and a gate; gives handlers. It knows the two error trees and gRPC's codes, and no message of ours.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, cast

import grpc
import grpc.aio
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from loramux_server import callers, errors
from loramux_server.calls import Call, Writing, count_unknown
from loramux_server.gate import Gate
from loramux_server.metrics import Metrics
from loramux_server.tracing import Tracing
from loramux_store import errors as shelf

DOMAIN = "loramux"
_MAX_TEXT = 1024  # of a message: statuses travel in trailers, which hold about 8 KiB in all
_MAX_VIOLATIONS = 20
_ELSEWHERE_S = 1.0  # until a balancer has noticed that this server stops, or another one is up
_BUSY_S = 2.0  # until a call that writes to an upload is likely to have ended

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

_log = structlog.stdlib.get_logger(__name__)

_Details = tuple[grpc.StatusCode, str, dict[str, str], list[Message]]


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps all four kinds of handlers."""

    def __init__(self, metrics: Metrics, gate: Gate | None = None, tracing: Tracing | None = None) -> None:
        self._metrics = metrics
        self._tracing = tracing
        self._gate = gate or Gate()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler, wrapped; None (unknown methods) stays None."""
        handler = await continuation(handler_call_details)
        if handler is None:
            count_unknown(self._metrics)
            return None
        streams = handler.request_streaming
        service, _, method = handler_call_details.method.lstrip("/").partition("/")
        if handler.response_streaming:
            kind = "stream_stream" if streams else "unary_stream"
            behaviour = getattr(handler, kind)
            if inspect.iscoroutinefunction(behaviour):  # answers by context.write, as the health service does
                wrapped: Any = self._unary(behaviour, service, method, streams=streams, writes=True)
            else:
                wrapped = self._streaming(behaviour, service, method, streams=streams)
        else:
            kind = "stream_unary" if streams else "unary_unary"
            wrapped = self._unary(getattr(handler, kind), service, method, streams=streams, writes=False)
        return handler._replace(request_deserializer=_lenient(handler.request_deserializer), **{kind: wrapped})

    def _unary(self, behaviour: Any, service: str, method: str, *, streams: bool, writes: bool) -> Any:
        async def call(request: Any, context: Any) -> Any:
            with self._following(service, method, context) as record:
                try:
                    record.caller = self._enter(service, method, context)
                    if writes:
                        return await behaviour(record.counted(_parsed(request), streams), Writing(context, record))
                    response = await behaviour(record.counted(_parsed(request), streams), context)
                    record.sent()
                    return response
                except Exception as error:
                    await self._abort(record, context, error)

        return call

    def _streaming(self, behaviour: Any, service: str, method: str, *, streams: bool) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._following(service, method, context) as record:
                try:
                    record.caller = self._enter(service, method, context)
                    async with aclosing(behaviour(record.counted(_parsed(request), streams), context)) as responses:
                        async for response in responses:
                            record.sent()
                            yield response
                except Exception as error:
                    await self._abort(record, context, error)

        return call

    def _following(self, service: str, method: str, context: Any) -> Call:
        return Call(self._metrics, self._tracing, service, method, context)

    def _enter(self, service: str, method: str, context: Any) -> str | None:
        """The caller's verified name; from here on it is the current one."""
        names = context.auth_context().get("x509_common_name") or ()
        certified = next((bytes(name).decode(errors="replace") for name in names), None)
        caller = self._gate.enter(
            f"/{service}/{method}", context.invocation_metadata() or (), context.peer(), certified
        )
        callers.answering(caller)
        return caller.holder

    async def _abort(self, call: Call, context: Any, error: Exception) -> None:
        """Ends the RPC with the status of the error."""
        if isinstance(error, grpc.aio.AbortError):  # a handler of another library chose its own status
            call.end(context.code().name if context.code() else "UNKNOWN")
            raise error
        if isinstance(error, shelf.Refused):
            self._metrics.upload_failures.labels(error.reason.partition(":")[0]).inc()
        if isinstance(error, _TURNED_AWAY):
            self._metrics.rejected.labels(_describe(error)[1]).inc()
        code, status = to_status(error)
        call.end(code.name)
        trailer = ("grpc-status-details-bin", status.SerializeToString())
        await context.abort(code, status.message, (trailer,))


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


def to_status(error: Exception) -> tuple[grpc.StatusCode, status_pb2.Status]:
    """The code and google.rpc.Status of an error: ErrorInfo always, BadRequest and RetryInfo where they fit."""
    code, reason, metadata, details = _describe(error)
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)
    text = (
        str(error)
        if code is not grpc.StatusCode.INTERNAL or isinstance(error, errors.LoraMuxError)
        else "internal error"
    )
    status = status_pb2.Status(code=code.value[0], message=_short(text))
    for detail in (info, *details):
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return code, status


def _describe(error: Exception) -> _Details:
    code = grpc.StatusCode
    match error:
        case errors.InvalidRequest():
            return code.INVALID_ARGUMENT, "INVALID_FIELD", {}, [_bad_request(error.violations)]
        case errors.Incompatible():
            return code.FAILED_PRECONDITION, error.reason, {}, []
        case errors.PinTooLarge():
            return code.RESOURCE_EXHAUSTED, "PINS_FULL", {"held": str(error.held), "most": str(error.most)}, []
        case errors.Busy():
            return code.RESOURCE_EXHAUSTED, "QUEUE_FULL", {}, [_retry(error.retry_after)]
        case errors.OverLimit():
            quota = _quota_failure(error.caller, error)
            return code.RESOURCE_EXHAUSTED, error.reason, {}, [_retry(error.retry_after), quota]
        case errors.Unknown():
            return code.UNAUTHENTICATED, error.reason, {}, []
        case errors.Forbidden():
            return code.PERMISSION_DENIED, "SCOPE_MISSING", {"scope": error.scope}, []
        case errors.TooLate():
            return code.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT", {"estimated_seconds": f"{error.seconds:.1f}"}, []
        case errors.Draining() | shelf.Closed():
            return code.UNAVAILABLE, "DRAINING", {}, [_retry(_ELSEWHERE_S)]
        case errors.OutOfMemory():
            return code.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", {}, []
        case errors.PictureFailed():
            return code.INTERNAL, "PICTURE_FAILED", {}, []
        case shelf.NotFound():
            return code.NOT_FOUND, "ADAPTER_NOT_FOUND", {"adapter": _short(error.ref)}, []
        case shelf.PinNotFound():
            return code.NOT_FOUND, "PIN_NOT_FOUND", {"adapter": _short(error.ref)}, []
        case shelf.Changed():
            return code.ABORTED, "ETAG_MISMATCH", {"adapter": error.name, "etag": error.current}, []
        case shelf.UploadNotFound():
            return code.NOT_FOUND, "UPLOAD_NOT_FOUND", {"upload_id": error.upload_id}, []
        case shelf.UploadBusy():
            return code.ABORTED, "UPLOAD_BUSY", {"upload_id": error.upload_id}, [_retry(_BUSY_S)]
        case shelf.WrongOffset():
            offsets = {"offset": str(error.offset), "received": str(error.received)}
            return code.FAILED_PRECONDITION, "WRONG_OFFSET", offsets, []
        case shelf.QuotaExceeded():
            numbers = {"needed": str(error.needed), "used": str(error.used), "limit": str(error.limit)}
            return code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", numbers, [_quota_failure(error.subject, error)]
        case errors.UploadStalled():
            return code.DEADLINE_EXCEEDED, "UPLOAD_STALLED", {}, []
        case shelf.InvalidArgument():
            violation = errors.Violation(error.field, _short(str(error)))
            return code.INVALID_ARGUMENT, "INVALID_FIELD", {}, [_bad_request((violation,))]
        case shelf.ChecksumMismatch():
            return code.DATA_LOSS, error.reason, _shortened(error.detail), []
        case shelf.TooLarge():
            return code.RESOURCE_EXHAUSTED, error.reason, _shortened(error.detail), []
        case shelf.Refused():
            return code.INVALID_ARGUMENT, error.reason, _shortened(error.detail), []
        case shelf.NoSpace():
            return code.RESOURCE_EXHAUSTED, "NO_SPACE", {"needed": str(error.needed), "free": str(error.free)}, []
        case shelf.ReadOnly():
            return code.FAILED_PRECONDITION, "STORE_READ_ONLY", {}, []
        case shelf.DiskFailed():
            return code.UNAVAILABLE, "DISK_FAILED", {}, []
        case shelf.DataLoss():
            return code.DATA_LOSS, "BLOB_DAMAGED", {"blob": error.digest}, []
        case _:
            _log.error("an RPC failed", exc_info=error)
            return code.INTERNAL, "INTERNAL", {}, []


def _retry(seconds: float) -> error_details_pb2.RetryInfo:
    return error_details_pb2.RetryInfo(retry_delay=Duration(seconds=max(1, round(seconds))))


def _quota_failure(subject: str, error: Exception) -> error_details_pb2.QuotaFailure:
    violation = error_details_pb2.QuotaFailure.Violation(subject=subject, description=_short(str(error), 256))
    return error_details_pb2.QuotaFailure(violations=[violation])


def _bad_request(violations: tuple[errors.Violation, ...]) -> error_details_pb2.BadRequest:
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=v.field, description=_short(v.description, 256))
            for v in violations[:_MAX_VIOLATIONS]
        ]
    )


def _shortened(detail: dict[str, str]) -> dict[str, str]:
    return {key: _short(value, 256) for key, value in list(detail.items())[:8]}


def _short(text: str, most: int = _MAX_TEXT) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
