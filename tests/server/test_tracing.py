"""Traces of the whole server, kept in memory; and none of it where nobody asked."""

import asyncio
import io
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from living import PICTURES, Living
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from loramux.v1 import generation_pb2 as pb
from loramux.v1 import generation_service_pb2_grpc
from loramux_client.errors import InvalidArgument
from loramux_client.pictures import Step
from loramux_server import app, logs
from loramux_server.errors import BadSetting
from loramux_server.settings import Settings
from loramux_server.tracing import Tracing, open_tracing, trace_id

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Traced(Living):
    """A server whose spans are kept."""

    def __init__(self, folder: Path) -> None:
        self.kept = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.kept))
        super().__init__(folder, Tracing(provider))

    def spans(self) -> list[ReadableSpan]:
        return [span for span in self.kept.get_finished_spans() if "Health" not in span.name]

    def tree(self) -> dict[str, str | None]:
        """Each span's name, with its parent's."""
        names = {span.context.span_id: span.name for span in self.spans()}
        return {span.name: names.get(span.parent.span_id) if span.parent else None for span in self.spans()}

    def one(self, name: str) -> ReadableSpan:
        (span,) = (span for span in self.spans() if span.name.rpartition("/")[2] == name)
        return span


def _told(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


@pytest.fixture
async def traced(tmp_path: Path) -> AsyncIterator[Traced]:
    made = Traced(tmp_path / "store")
    await made.start()
    yield made
    await made.shut()


async def test_a_request_is_told_from_its_call_to_its_decoding(traced: Traced) -> None:
    """The caller's trace goes on; its spans follow one another; log and metrics lead to the trace."""
    lines = io.StringIO()
    logs.configure(logging.INFO, "json")
    logging.getLogger().handlers[0].setStream(lines)  # type: ignore[attr-defined]
    try:
        async with grpc.aio.insecure_channel(f"localhost:{traced.at.grpc_port}") as channel:
            asked = pb.GenerateRequest(prompt="a red apple", steps=2, blend=pb.Blend(entries=[{"adapter": "ink"}]))
            metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
            await generation_service_pb2_grpc.GenerationServiceStub(channel).Generate(asked, metadata=metadata)
    finally:
        structlog.reset_defaults()
        logging.basicConfig(force=True, level=logging.WARNING)
    call = f"{PICTURES}/Generate"
    assert traced.tree() == {
        call: None, "admit": call, "request": call, "queue": "request", "store": "queue", "encode": "queue",
        "ticks": "request", "decode": "request",
    }  # fmt: skip
    assert {f"{span.context.trace_id:032x}" for span in traced.spans()} == {TRACE}
    rpc, request = traced.one("Generate"), traced.one("request")
    assert rpc.kind is SpanKind.SERVER and f"{rpc.parent.span_id:016x}" == PARENT
    assert _told(rpc)["rpc.response.status_code"] == "OK" and rpc.status.status_code is StatusCode.UNSET
    version = traced.app.store.resolve("ink")
    assert _told(request)["loramux.blend"] == (f"ink@1:{version.digest[:12]}*1",)
    said = [json.loads(line) for line in lines.getvalue().splitlines()]
    (told,) = (line for line in said if line["event"] == "request")
    assert (told["trace_id"], told["request_id"]) == (TRACE, _told(request)["loramux.request_id"])
    (of_call,) = (line for line in said if line["event"] == "rpc")
    assert (of_call["trace_id"], of_call["request_id"]) == (TRACE, told["request_id"]) and "reason" not in of_call
    _check_order(traced)
    await _check_exemplars(traced, str(told["request_id"]))


def _times(traced: Traced, name: str) -> tuple[int, int]:
    span = traced.one(name)
    assert span.start_time is not None and span.end_time is not None
    return span.start_time, span.end_time


def _check_order(traced: Traced) -> None:
    request, queue, ticks, decode = (_times(traced, name) for name in ("request", "queue", "ticks", "decode"))
    store, encode, rpc = (_times(traced, name) for name in ("store", "encode", "Generate"))
    slack = 20_000_000  # ns: between the end of decoding and its being told, which two clocks measure
    assert rpc[0] <= request[0] == queue[0] == store[0]
    assert store[1] == encode[0] and encode[1] <= queue[1] == ticks[0]
    assert ticks[1] == decode[0] and decode[1] <= request[1] + slack
    assert min(end - start for start, end in (store, encode, ticks, decode)) > 0


async def _check_exemplars(traced: Traced, request: str) -> None:
    _, text = await traced.get("/metrics", Accept=OPENMETRICS)
    assert text.endswith("# EOF\n")
    found = {
        family.name: dict(sample.exemplar.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.exemplar
    }
    for name in ("request_seconds", "request_queue_seconds", "request_phase_seconds"):
        assert found[f"loramux_{name}"] == {"request_id": request, "trace_id": TRACE}
    assert found["grpc_server_handling_seconds"] == {"trace_id": TRACE}
    _, plain = await traced.get("/metrics")
    assert TRACE not in plain and "loramux_request_seconds_bucket" in plain


async def test_what_is_refused_is_no_fault_of_the_server_and_what_breaks_is(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidArgument):
        await traced.client.generate("a red apple", steps=100_000)
    rpc = traced.one("Generate")
    assert _told(rpc)["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert rpc.status.status_code is StatusCode.UNSET and "request" not in traced.tree()
    assert traced.one("admit").status.description == "InvalidRequest"
    traced.kept.clear()
    monkeypatch.setattr(traced.app.engine, "step", lambda keys: 1 / 0)
    with pytest.raises(Exception, match="forward"):
        await traced.client.generate("a red apple", steps=2)
    assert traced.one("Generate").status.status_code is StatusCode.ERROR
    assert traced.one("request").status.description == "PictureFailed"


async def test_a_stream_that_is_given_up_ends_its_spans(traced: Traced) -> None:
    """Also where gRPC ends the generator from elsewhere than where it began."""
    story = traced.client.stream("a red apple", steps=150)
    async for event in story:
        if isinstance(event, Step):
            break
    await story.aclose()
    async with asyncio.timeout(20):
        while "request" not in traced.tree() or len(traced.tree()) < 3:
            await asyncio.sleep(0.02)
    assert _told(traced.one("request"))["loramux.outcome"] == "cancelled"
    assert traced.one("request").status.status_code is StatusCode.UNSET
    assert _told(traced.one("GenerateStream"))["rpc.response.status_code"] == "CANCELLED"


async def test_calls_at_once_keep_their_traces_apart(traced: Traced) -> None:
    await asyncio.gather(*(traced.client.generate("a red apple", steps=2, seed=seed) for seed in range(4)))
    traces = {span.context.trace_id for span in traced.spans()}
    assert len(traces) == 4
    for trace in traces:
        assert len([span for span in traced.spans() if span.context.trace_id == trace]) == 8
    assert trace_id() is None


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    program = (
        "import sys, loramux_server.app, loramux_server.tracing as t\n"
        "assert t.trace_id() is None and t.exemplar() is None and t.exemplar('r') == {'request_id': 'r'}\n"
        "assert t.add_trace_id(None, '', {'event': 'x'}) == {'event': 'x'}\n"
        "sys.exit(any(name.split('.')[0] == 'opentelemetry' for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or "opentelemetry is imported"


def test_where_the_packages_are_missing_a_setting_is_refused_and_a_strange_variable_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(BadSetting, match=r"otel_endpoint: is http://c:4317, .*loramux\[otel\]"):
        app._tracing(Settings(otel_endpoint="http://c:4317"), "1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317")
    assert Settings().otel_endpoint == "http://c:4317"
    assert app._tracing(Settings(), "1") is None
    with pytest.raises(ValueError, match="otel_endpoint"):
        Settings(otel_endpoint="c:4317")


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OpenTelemetry collector, as far as it matters here."""

    def __init__(self) -> None:
        self.got: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: object
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.got.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.mark.parametrize("name", [None, "gallery"])
def test_spans_reach_a_collector_before_the_server_is_gone(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    collector, server = Collector(), grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    if name is not None:
        monkeypatch.setenv("OTEL_SERVICE_NAME", name)
    try:
        tracing = open_tracing(f"http://127.0.0.1:{port}", 1.0, "9.9")
        with tracing.span("admit"):
            pass
        tracing.close()
    finally:
        server.stop(None)
    (resource,) = (spans for request in collector.got for spans in request.resource_spans)
    told = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert (told["service.name"], told["service.version"]) == (name or "loramux", "9.9")
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["admit"]
