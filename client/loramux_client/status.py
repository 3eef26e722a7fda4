"""gRPC statuses become errors of the tree.

Takes: a failed call, sync or asyncio. Gives: the matching LoraMuxClientError, with what its
google.rpc.Status details say. Does not know which call it was.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import grpc
from google.rpc import error_details_pb2, status_pb2  # pyright: ignore[reportMissingTypeStubs]
from grpc_status import rpc_status

from loramux_client import errors

_CLASSES: dict[grpc.StatusCode, type[errors.LoraMuxClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.ABORTED: errors.Aborted,
    grpc.StatusCode.OUT_OF_RANGE: errors.OutOfRange,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: errors.PermissionDenied,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DATA_LOSS: errors.DataLoss,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unimplemented,
}

_NOBODY = ("failed to connect", "connections to all backends failing")
"""How gRPC begins to say that nobody answers, by the way calls are balanced; the cause is at the end."""

# grpc_status carries no types.
_from_call = cast(
    "Callable[[grpc.Call], status_pb2.Status | None]",
    rpc_status.from_call,  # pyright: ignore[reportUnknownMemberType]
)


@contextmanager
def translated(target: str) -> Generator[None]:
    """Raises a failed call inside the block (awaited or not) as an error of the tree.

    target: the server's address, named where the trouble is reaching it.
    """
    try:
        yield
    except grpc.RpcError as failed:
        raise error_of(failed, target) from failed
    except grpc.FutureCancelledError as cancelled:
        raise errors.Cancelled("the call was cancelled") from cancelled


def error_of(failed: grpc.RpcError, target: str) -> errors.LoraMuxClientError:
    """The error of the tree that says what the failed call said."""
    # Both kinds of RpcError that a call raises are calls as well; the stubs do not say so.
    call = cast("grpc.Call", failed)
    code, details = call.code(), _details(_rich_status(call))
    message = call.details() or code.name
    if code is grpc.StatusCode.UNAVAILABLE and not details:  # a server always gives details
        cause = message.rpartition(": ")[2] if message.startswith(_NOBODY) else message
        message = f"no answer from a server at {target}: {cause}"
    return _CLASSES.get(code, errors.Internal)(message, **details)


def _rich_status(call: grpc.Call) -> status_pb2.Status:
    """The call's google.rpc.Status; empty where it has none or a broken one."""
    try:
        return _from_call(call) or status_pb2.Status()
    except ValueError:  # code or text of the details contradict the call's own
        return status_pb2.Status()


def _details(status: status_pb2.Status) -> dict[str, Any]:
    """The details we know as keyword arguments of an error."""
    found: dict[str, Any] = {}
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            found |= {"reason": info.reason, "metadata": dict(info.metadata)}
        elif detail.Unpack(bad):
            found["violations"] = [errors.Violation(v.field, v.description) for v in bad.field_violations]
        elif detail.Unpack(retry):
            found["retry_after"] = retry.retry_delay.ToTimedelta().total_seconds()
    return found
