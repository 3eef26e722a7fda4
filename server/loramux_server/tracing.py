"""Spans of RPCs and of what a request's time went into, for OpenTelemetry.

Takes an endpoint, or a place for spans; gives spans to whoever follows a call or a request. The spans of a request are
made when it has ended, from the times that its `Timings` say, so that neither runner nor engine knows of tracing.
Without the packages of `loramux[otel]`, or without an endpoint, nothing of it is imported and nothing is done.

    /loramux.v1.GenerationService/Generate      the RPC; continues the caller's trace (W3C traceparent)
      admit                                     fields checked, references resolved
      request                                   request id and blend
        queue                                   arrival to first step
          store                                 until its adapters and images are ready
          encode                                its texts
        ticks                                   first to last step
        decode                                  the rest
"""

import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loramux_server.errors import BadSetting
from loramux_server.requests import Job, Timings, Weighted

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

_SPAN: "ContextVar[Span | None]" = ContextVar("span", default=None)
"""Of the RPC that is being answered. Set once in its task, as long as which it lasts: gRPC may end a stream from
another context than the one that began it, where OpenTelemetry's own could not be reset."""

_NO_FAULT = {"OK", "CANCELLED", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED"} | {
    "UNAUTHENTICATED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED",
}  # fmt: skip
"""Statuses that are no error of a server's span, after OpenTelemetry's conventions for RPCs."""


_TIMEOUT_S = 5.0  # of a collector that does not answer; the end of the server waits as long


@dataclass(frozen=True, slots=True)
class Rpc:
    """The span of a call."""

    span: "Span"

    def end(self, code: str, caller: str | None) -> None:
        """code: by its name."""
        from opentelemetry.trace import StatusCode

        self.span.set_attribute("rpc.response.status_code", code)
        if caller is not None:
            self.span.set_attribute("enduser.id", caller)
        if code not in _NO_FAULT:
            self.span.set_status(StatusCode.ERROR)
        self.span.end()


class Tracing:
    """Makes spans, which go where the provider has them go."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("loramux_server")
        self._propagator = TraceContextTextMapPropagator()

    def rpc(self, service: str, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Rpc:
        """Begins the span of a call, which is the current one from here on."""
        from opentelemetry.trace import SpanKind

        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        span = self._tracer.start_span(
            f"{service}/{method}", self._propagator.extract(carrier), SpanKind.SERVER, attributes
        )
        _SPAN.set(span)
        return Rpc(span)

    @contextmanager
    def span(self, name: str) -> Generator[None]:
        """What is done within it, under the call's span."""
        from opentelemetry.trace import StatusCode

        span = self._tracer.start_span(name, _under(_SPAN.get()))
        try:
            yield
        except Exception as error:
            span.set_status(StatusCode.ERROR, type(error).__name__)
            raise
        finally:
            span.end()

    def request(self, job: Job, outcome: str, seconds: float, timings: Timings | None) -> None:
        """The spans of a request that has ended now, `seconds` after it was taken in. Without timings, which a request
        that did not end well has none of, it is one span."""
        from opentelemetry.trace import StatusCode

        now = time.time()
        began = now - seconds
        attributes = {"loramux.request_id": job.id, "loramux.outcome": outcome, "loramux.images": job.num_images}
        attributes |= {"loramux.blend": [named(weighted) for weighted in job.blend]}
        request = self._tracer.start_span("request", _under(_SPAN.get()), attributes=attributes, start_time=_ns(began))
        if outcome not in ("done", "cancelled"):
            request.set_status(StatusCode.ERROR, outcome)
        if timings is not None:
            self._phases(request, began, timings)
        request.end(_ns(now))

    def _phases(self, request: "Span", began: float, timings: Timings) -> None:
        stepping, denoised = began + timings.queue, began + timings.queue + timings.denoise
        loaded = began + timings.load
        queue = self._between("queue", request, began, stepping)
        self._between("store", queue, began, loaded)
        self._between("encode", queue, loaded, loaded + timings.encode)
        self._between("ticks", request, stepping, denoised)
        self._between("decode", request, denoised, denoised + timings.decode)

    def _between(self, name: str, parent: "Span", start: float, end: float) -> "Span":
        span = self._tracer.start_span(name, _under(parent), start_time=_ns(start))
        span.end(_ns(end))
        return span

    def close(self) -> None:
        """Sends what is not sent yet."""
        self._provider.shutdown()


def open_tracing(endpoint: str, ratio: float, version: str) -> Tracing:
    """Spans go to an OpenTelemetry collector, over gRPC, in batches on a thread of their own.

    endpoint: http://HOST:PORT, or https:// with TLS; ratio: of traces that are kept, where the caller has not decided.

    Raises:
        BadSetting: the packages are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ImportError:
        raise BadSetting(
            f"otel_endpoint: is {endpoint}, which needs more packages: pip install 'loramux[otel]'"
        ) from None
    resource = Resource.create({"service.version": version})
    if str(resource.attributes["service.name"]).startswith("unknown_service"):  # nobody has named it
        resource = resource.merge(Resource({"service.name": "loramux"}))
    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(ratio), resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_S)))
    return Tracing(provider)


def trace_id() -> str | None:
    """Of the call that is being answered, 32 hex digits; None without tracing."""
    span = _SPAN.get()
    return None if span is None else f"{span.get_span_context().trace_id:032x}"


def exemplar(request: str | None = None) -> dict[str, str] | None:
    """What a sample of a histogram points at; None where there is nothing to point at."""
    found = {"request_id": request, "trace_id": trace_id()}
    return {name: value for name, value in found.items() if value is not None} or None


def add_trace_id(_logger: Any, _method: str, line: Any) -> Mapping[str, Any]:
    """For structlog: the trace id, in lines that are logged while a traced call is answered."""
    found = trace_id()
    if found is not None:
        line["trace_id"] = found
    return line


def named(weighted: Weighted) -> str:
    """An entry of a blend, as the log and spans have it."""
    version = weighted.version
    return f"{version.adapter}@{version.number}:{version.digest[:12]}*{weighted.weight:g}"


def _under(span: "Span | None") -> "Context | None":
    if span is None:
        return None
    from opentelemetry.trace import set_span_in_context

    return set_span_in_context(span)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
