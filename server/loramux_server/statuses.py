"""Errors become statuses: a code, a message and details.

Takes errors of the two trees; gives gRPC's code and a google.rpc.Status that is small enough to arrive. It knows no
call and no handler.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import grpc
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from loramux_server import errors
from loramux_store import errors as shelf

DOMAIN = "loramux"
MAX_BYTES = 4096
"""Of a status as it travels: the message, percent-encoded, and the details, which hold it again, in base64. Clients
take trailers of 8 KiB in all, and lose what is larger, code and reason included."""
LEFT_OUT = "left_out"
"""Key of ErrorInfo's metadata: how many fields at fault and numbers there were no room for."""

_MAX_MESSAGE = 1024  # bytes, percent-encoded: with the details' copy at most 2,390 of the 4,096
_MAX_PART = 256  # bytes of a text within the details
_MAX_REASON = 400  # bytes: those of files have 100 characters, of 4 bytes at most
_FRAME = 12  # bytes, at most, around the two texts of a field at fault or of an entry of metadata
_REST = 96  # bytes, at most, of BadRequest without its fields, and of the entry `left_out`
_ELSEWHERE_S = 1.0  # until a balancer has noticed that this server stops, or another one is up
_BUSY_S = 2.0  # until a call that writes to an upload is likely to have ended
_MOST_MS = (1 << 31) - 1  # 24 days: clients take what is no int32 for "do not try again"
_PLAIN = frozenset(range(0x20, 0x7F)) - {ord("%")}  # bytes that travel as they are in a message

_FieldViolation = error_details_pb2.BadRequest.FieldViolation
_log = structlog.stdlib.get_logger(__name__)

_Details = tuple[grpc.StatusCode, str, dict[str, str], list[Message]]


@dataclass(frozen=True, slots=True)
class Failure:
    """How a call fails. reason: ErrorInfo's; retry: RetryInfo's seconds, None without it."""

    code: grpc.StatusCode
    reason: str
    status: status_pb2.Status
    retry: int | None = None

    @property
    def trailers(self) -> tuple[tuple[str, str | bytes], ...]:
        """What goes with code and message. A client that tries again by itself reads no RetryInfo, but the time of
        gRFC A6, in milliseconds."""
        details = ("grpc-status-details-bin", self.status.SerializeToString())
        if self.retry is None:
            return (details,)
        return details, ("grpc-retry-pushback-ms", str(min(self.retry * 1000, _MOST_MS)))


class _Room:
    """What is left of a status for texts of which there may be many. free: bytes."""

    def __init__(self, free: int) -> None:
        self._free = free
        self.left_out = 0

    def fitting(self, pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """Those that there is room for, each text cut to its bound."""
        for one, other in ((_short(one), _short(other)) for one, other in pairs):
            size = len(one.encode()) + len(other.encode()) + _FRAME
            if size > self._free:
                self.left_out += 1
                continue
            self._free -= size
            yield one, other


def failure_of(error: Exception) -> Failure:
    """What the client hears of an error: ErrorInfo always, BadRequest and RetryInfo where they fit."""
    code, reason, metadata, details = _describe(error)
    foreseen = code is not grpc.StatusCode.INTERNAL or isinstance(error, errors.LoraMuxError)
    status = status_pb2.Status(code=code.value[0], message=_message(str(error) if foreseen else "internal error"))
    info = error_details_pb2.ErrorInfo(reason=_short(reason, _MAX_REASON), domain=DOMAIN)
    raw = (MAX_BYTES - escaped_bytes(status.message)) // 4 * 3
    room = _Room(raw - _packed(status, info, *details).ByteSize() - _REST)
    bad = [_FieldViolation(field=field, description=text) for field, text in room.fitting(_faults(error))]
    info.metadata.update(room.fitting(metadata.items()))
    if room.left_out:
        info.metadata[LEFT_OUT] = str(room.left_out)
    faults = [error_details_pb2.BadRequest(field_violations=bad)] if bad else []
    retry = next((each.retry_delay.seconds for each in details if isinstance(each, error_details_pb2.RetryInfo)), None)
    return Failure(code, info.reason, _packed(status, info, *faults, *details), retry)


def escaped_bytes(message: str) -> int:
    """Of a status's message as it travels, percent-encoded."""
    return sum(map(_escaped, message.encode()))


def _packed(status: status_pb2.Status, *details: Message) -> status_pb2.Status:
    """The status with these details."""
    packed = [AnyMessage() for _ in details]
    for place, detail in zip(packed, details, strict=True):
        place.Pack(detail)
    return status_pb2.Status(code=status.code, message=status.message, details=packed)


def _faults(error: Exception) -> list[tuple[str, str]]:
    """Fields, and what is wrong with each."""
    match error:
        case errors.InvalidRequest():
            return [(violation.field, violation.description) for violation in error.violations]
        case shelf.InvalidArgument():
            return [(error.field, str(error))]
        case _:
            return []


def _describe(error: Exception) -> _Details:
    code = grpc.StatusCode
    match error:
        case errors.InvalidRequest() | shelf.InvalidArgument():
            return code.INVALID_ARGUMENT, "INVALID_FIELD", {}, []
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
            return code.NOT_FOUND, "ADAPTER_NOT_FOUND", {"adapter": error.ref}, []
        case shelf.PinNotFound():
            return code.NOT_FOUND, "PIN_NOT_FOUND", {"adapter": error.ref}, []
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
        case shelf.ChecksumMismatch():
            return code.DATA_LOSS, error.reason, error.detail, []
        case shelf.TooLarge():
            return code.RESOURCE_EXHAUSTED, error.reason, error.detail, []
        case shelf.Refused():
            return code.INVALID_ARGUMENT, error.reason, error.detail, []
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
    violation = error_details_pb2.QuotaFailure.Violation(subject=_short(subject), description=_short(str(error)))
    return error_details_pb2.QuotaFailure(violations=[violation])


def _message(text: str) -> str:
    data = text[: _MAX_MESSAGE + 1].encode(errors="backslashreplace")  # what is wrong is often told in its own words
    sizes = list(accumulate(map(_escaped, data)))
    if not sizes or sizes[-1] <= _MAX_MESSAGE:
        return data.decode()
    return data[: bisect_right(sizes, _MAX_MESSAGE - 3)].decode(errors="ignore") + "..."


def _escaped(byte: int) -> int:
    return 1 if byte in _PLAIN else 3


def _short(text: str, most: int = _MAX_PART) -> str:
    """At most so many bytes of it."""
    data = text.encode(errors="backslashreplace")
    return data.decode() if len(data) <= most else data[: most - 3].decode(errors="ignore") + "..."
