"""Metrics: series are bounded, every one is described, messages are counted, exemplars point at requests."""

import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from loramux_server.collectors import Held, MemoryCollector, ResidencyCollector, StoreCollector
from loramux_server.described import Described, table
from loramux_server.frequent_adapters import OTHER, FrequentAdapters
from loramux_server.interceptors import Interceptor
from loramux_server.metrics import Metrics
from loramux_store.errors import DiskFailed, NoSpace
from loramux_store.record import StoreStats


def test_the_documents_table_is_the_registry() -> None:
    document = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    shown = document.partition("<!-- metrics -->\n")[2].partition("\n<!-- /metrics -->")[0]
    assert shown == table(Metrics().described), "put what `loramux config metrics` prints into docs/metrics.md"


def test_every_metric_is_described_as_it_is() -> None:
    metrics = Metrics(adapter_series=1)
    metrics.registry.register(MemoryCollector(lambda: {"base": 1}, lambda: {"free": 1}, "cuda"))
    metrics.registry.register(ResidencyCollector(lambda: [Held("a", 1, "host")]))
    told = {each.name.removesuffix("_total"): each for each in metrics.described}
    assert len(told) == len(metrics.described)
    found = {family.name: family for family in metrics.registry.collect() if not family.name.startswith("process_")}
    assert set(found) == {name for name in told if not name.startswith("loramux_store_") or name in found}
    for name, family in found.items():
        assert (family.type, family.documentation) == (told[name].kind, told[name].text)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(told[name].labels), name


def test_a_store_that_cannot_tell_takes_no_other_numbers_with_it() -> None:
    def fails() -> StoreStats:
        raise DiskFailed("the catalog", "input/output error")

    metrics = Metrics()
    metrics.registry.register(StoreCollector(fails))
    found = {family.name for family in metrics.registry.collect()}
    assert "loramux_requests_in_flight" in found and not any(name.startswith("loramux_store_b") for name in found)


def test_names_say_their_units_and_begin_with_the_prefix() -> None:
    for each in Metrics().described:
        assert re.fullmatch(r"(loramux|grpc_server)_[a-z_]+", each.name)
        assert each.name.endswith("_total") == (each.kind == "counter")
        assert not re.search(r"_(ms|us|milliseconds|kb|mb|percent)(_|$)", each.name)
        assert each.text.endswith(".")
    assert Described("loramux_x_bytes_total", "counter", "").unit == "bytes"
    assert Described("loramux_x_total", "counter", "").unit == ""


def _shown(adapters: FrequentAdapters) -> dict[str, float]:
    (family,) = adapters.collect()
    return {sample.labels["adapter"]: sample.value for sample in family.samples}


@given(st.lists(st.sampled_from("abcdefghij")), st.integers(1, 4))
def test_the_frequent_are_few_and_nothing_is_lost(names: list[str], most: int) -> None:
    """Whatever comes: all that was counted is shown once, never too much of a name, and the rest never falls."""
    adapters, real, others = FrequentAdapters(most), Counter[str](), 0.0
    for name in names:
        adapters.count([name])
        real[name] += 1
        shown = _shown(adapters)
        assert sum(shown.values()) == real.total() and len(shown) <= most + 1
        assert shown[OTHER] >= others
        others = shown.pop(OTHER)
        assert all(0 < shown[each] <= real[each] for each in shown) and name in shown


def test_who_is_asked_for_often_has_a_series_among_a_thousand_who_are_not() -> None:
    """More than 1 in `most` of all is guaranteed a place, by the algorithm's proof."""
    asked = ["often"] * 400 + ["second"] * 300 + [f"rare{index}" for index in range(1000)]
    random.Random(7).shuffle(asked)
    adapters = FrequentAdapters(10)
    adapters.count(asked)
    shown = _shown(adapters)
    assert {"often", "second"} < set(shown) and len(shown) == 11
    assert 350 < shown["often"] <= 400
    off = FrequentAdapters(0)
    off.count(asked)
    assert _shown(off) == {}


def test_a_version_has_a_series_only_while_it_is_in_memory() -> None:
    held = [Held("a", 1, "device"), Held("a", 1, "host"), Held("a", 1, "host"), Held("b", 3, "host")]
    metrics = Metrics()
    metrics.registry.register(ResidencyCollector(lambda: held))

    def value(adapter: str, version: str, tier: str) -> float | None:
        labels = {"adapter": adapter, "version": version, "tier": tier}
        return metrics.registry.get_sample_value("loramux_adapter_resident", labels)

    assert value("a", "1", "device") == value("a", "1", "host") == value("b", "3", "host") == 1
    del held[0]
    assert value("a", "1", "device") is None and value("a", "1", "host") == 1


BROKEN = b"broken"


class Echo(grpc.GenericRpcHandler):
    """All four kinds of RPCs; a stream answers twice. What is asked to break does so."""

    def service(self, handler_call_details: Any) -> Any:
        def kind(name: str, behaviour: Any) -> Any:
            return getattr(grpc, f"{name}_rpc_method_handler")(behaviour)

        def whole(request: bytes) -> bytes:
            if request == BROKEN:
                raise NoSpace(2, 1)
            return request

        async def unary_unary(request: bytes, context: Any) -> bytes:
            return whole(request)

        async def stream_unary(requests: Any, context: Any) -> bytes:
            return b"".join([whole(request) async for request in requests])

        async def unary_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
            yield request
            yield whole(request)

        async def stream_stream(requests: Any, context: Any) -> AsyncIterator[bytes]:
            async for request in requests:
                yield request
                yield whole(request)

        found = {"UU": unary_unary, "SU": stream_unary, "US": unary_stream, "SS": stream_stream}
        behaviour = found.get(handler_call_details.method.rpartition("/")[2])
        return behaviour and kind(behaviour.__name__, behaviour)


@pytest.fixture
async def echo() -> AsyncIterator[Any]:
    metrics = Metrics()
    server = grpc.aio.server(interceptors=[Interceptor(metrics)], options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Echo(),))
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield SimpleNamespace(metrics=metrics, channel=channel, checks=checks)
    await server.stop(None)


async def _many(*messages: bytes) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


async def test_messages_of_every_kind_of_call_are_counted(echo: Any) -> None:
    def counted(method: str, service: str = "echo.Echo") -> tuple[float | None, ...]:
        labels, value = {"grpc_service": service, "grpc_method": method}, echo.metrics.registry.get_sample_value
        return tuple(value(f"grpc_server_msg_{way}_total", labels) for way in ("received", "sent"))

    assert await echo.channel.unary_unary("/echo.Echo/UU")(b"a") == b"a"
    assert await echo.channel.stream_unary("/echo.Echo/SU")(_many(b"a", b"b", b"c")) == b"abc"
    assert [each async for each in echo.channel.unary_stream("/echo.Echo/US")(b"a")] == [b"a"] * 2
    assert len([each async for each in echo.channel.stream_stream("/echo.Echo/SS")(_many(b"a", b"b"))]) == 4
    assert (counted("UU"), counted("SU"), counted("US"), counted("SS")) == ((1, 1), (3, 1), (1, 2), (2, 4))
    watching = health_pb2_grpc.HealthStub(echo.channel).Watch(health_pb2.HealthCheckRequest(service="x"))
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    await echo.checks.set("x", health_pb2.HealthCheckResponse.SERVING)
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
    assert counted("Watch", "grpc.health.v1.Health") == (1, 2)
    watching.cancel()


async def test_methods_that_the_server_does_not_have_share_one_series(echo: Any) -> None:
    for method in ("/echo.Echo/Nothing", "/a/b", f"/{'x' * 200}/y"):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await echo.channel.unary_unary(method)(b"")
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    labels = {"grpc_service": "unknown", "grpc_method": "unknown"}
    value = echo.metrics.registry.get_sample_value
    assert value("grpc_server_started_total", labels) == 3
    assert value("grpc_server_handled_total", labels | {"grpc_code": "UNIMPLEMENTED"}) == 3
    (family,) = (each for each in echo.metrics.registry.collect() if each.name == "grpc_server_started")
    assert {sample.labels["grpc_service"] for sample in family.samples} == {"unknown"}


class Aborted:
    """A call's context, which notes what was counted of its method when it was aborted."""

    def __init__(self, metrics: Metrics, method: str) -> None:
        self._metrics, self._method = metrics, method
        self.counted: list[float | None] = []

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def invocation_metadata(self) -> None:
        return None

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def abort(self, code: grpc.StatusCode, message: str, trailers: Any) -> None:
        labels = {"grpc_service": "echo.Echo", "grpc_method": self._method, "grpc_code": code.name}
        self.counted.append(self._metrics.registry.get_sample_value("grpc_server_handled_total", labels))
        raise grpc.aio.AbortError


@pytest.mark.parametrize("method", ["UU", "SU", "US", "SS"])
async def test_a_call_is_counted_before_its_caller_knows_how_it_ended(method: str) -> None:
    """Else who asks for the metrics with a refusal in hand misses the refusal there."""
    metrics = Metrics()
    context = Aborted(metrics, method)
    details = SimpleNamespace(method=f"/echo.Echo/{method}", invocation_metadata=())

    async def found(_details: Any) -> Any:
        return Echo().service(details)

    handler = await Interceptor(metrics).intercept_service(found, cast("Any", details))
    asked = _many(b"a", BROKEN) if handler.request_streaming else BROKEN
    behaviour = next(
        filter(None, (handler.unary_unary, handler.stream_unary, handler.unary_stream, handler.stream_stream))
    )
    with pytest.raises(grpc.aio.AbortError):
        if handler.response_streaming:
            _ = [each async for each in behaviour(asked, context)]
        else:
            await behaviour(asked, context)
    assert context.counted == [1]


def exemplars(text: str) -> dict[str, list[dict[str, str]]]:
    """Of an exposition in OpenMetrics, by metric."""
    return {
        family.name: found
        for family in text_string_to_metric_families(text)
        if (found := [dict(sample.exemplar.labels) for sample in family.samples if sample.exemplar])
    }
