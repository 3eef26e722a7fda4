"""What is kept of each RPC while it runs: counts, a line of the log, a span.

Takes metrics and, where there is tracing, a tracer; follows one call from its start to its end. It knows no message of
ours and gives no status.
"""

import time
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import structlog

from loramux_server.metrics import Metrics
from loramux_server.tracing import Tracing, exemplar

UNKNOWN = "unknown"
"""Service and method of RPCs that the server does not have: their names are the caller's choice."""

_log = structlog.stdlib.get_logger(__name__)


class Call:
    """One RPC; what leaves it by another way than a return or `end` is a cancel. caller: the verified name, where
    there is one; request_id: of the request for pictures that it brought, once that is taken in."""

    def __init__(self, metrics: Metrics, tracing: Tracing | None, service: str, method: str, context: Any) -> None:
        self._metrics, self._labels = metrics, (service, method)
        self._span = None if tracing is None else tracing.rpc(service, method, context.invocation_metadata() or ())
        self._ended = False
        self.caller: str | None = None
        self.request_id: str | None = None

    def __enter__(self) -> "Call":
        _CURRENT.set(self)
        self._started = time.monotonic()
        self._metrics.rpcs_started.labels(*self._labels).inc()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not self._ended:
            self.end("OK" if error is None else "CANCELLED")

    def end(self, code: str, reason: str | None = None) -> None:
        """Tells of the call, with its status by name and, of an error of ours, the reason. Before the status is sent:
        who has it finds the call counted, logged and traced."""
        self._ended = True
        seconds = time.monotonic() - self._started
        self._metrics.rpcs_handled.labels(*self._labels, code).inc()
        self._metrics.rpc_seconds.labels(*self._labels).observe(seconds, exemplar())
        told = {"reason": reason, "request_id": self.request_id, "caller": self.caller}
        known = {name: value for name, value in told.items() if value is not None}
        service, method = self._labels
        _log.info("rpc", service=service, method=method, code=code, seconds=round(seconds, 3), **known)
        if self._span is not None:
            self._span.end(code, self.caller)

    def received(self) -> None:
        """A message came."""
        self._metrics.rpc_received.labels(*self._labels).inc()

    def sent(self) -> None:
        """A message goes out."""
        self._metrics.rpc_sent.labels(*self._labels).inc()

    def counted(self, request: Any, streams: bool) -> Any:
        """The same request, counted; one that streams as its messages are asked for."""
        if streams:
            return self._counting(request)
        self.received()
        return request

    async def _counting(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            self.received()
            yield request


class Writing:
    """A call's context whose messages are counted as they are written."""

    def __init__(self, context: Any, call: Call) -> None:
        self._context, self._call = context, call

    async def write(self, message: Any) -> None:
        """Sends one."""
        self._call.sent()
        await self._context.write(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


_CURRENT: ContextVar[Call | None] = ContextVar("call", default=None)


def brought(request_id: str) -> None:
    """The call that is being answered, where there is one, brought this request for pictures."""
    if (call := _CURRENT.get()) is not None:
        call.request_id = request_id


def count_unknown(metrics: Metrics) -> None:
    """An RPC that the server does not have; gRPC answers it."""
    metrics.rpcs_started.labels(UNKNOWN, UNKNOWN).inc()
    metrics.rpcs_handled.labels(UNKNOWN, UNKNOWN, "UNIMPLEMENTED").inc()
