"""Traps of what the network side is built on, tried here; and the page that says where each is tried."""

import ast
import asyncio
import inspect
import re
import threading
import tomllib
from collections.abc import AsyncIterator, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import dockerfile
import grpc
import grpc.aio
import pytest
import yaml
from living import Living
from named_tests import missing
from prometheus_client import Histogram

import loramux_server
from loramux.v1 import adapter_service_pb2 as pb
from loramux.v1 import adapter_service_pb2_grpc, generation_service_pb2
from loramux_server.adapter_service import AdapterService
from loramux_server.metrics import Metrics
from loramux_server.service import GenerationService
from loramux_store import store
from loramux_store.disk import refuse_network
from loramux_store.errors import UnsafeFilesystem
from loramux_store.upload import Upload

ROOT = Path(loramux_server.__file__).parents[2]
PAGE = ROOT / "docs" / "traps.md"
ROOMS = ("server/loramux_server", "client/loramux_client", "adapters_store/loramux_store", "training/loramux_train")
CANCELS = {"CancelledError", "BaseException"}
LETS_GO = {("tiers.py", "_until"), ("open_calls.py", "answering")}
"""The one awaits the end of a task of its own that it has cancelled, beside the work: no call comes there. The other
makes the end of the server, which is told by cancelling, the error of the call."""


def sources(*rooms: str) -> Iterator[tuple[Path, ast.Module]]:
    for room in rooms:
        for file in sorted((ROOT / room).rglob("*.py")):
            yield file, ast.parse(file.read_text("utf-8"))


def names(node: ast.AST | None) -> set[str]:
    """Last parts of all names in an expression."""
    if node is None:
        return {"BaseException"}
    found = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return found | {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}


def swallowing(tree: ast.Module) -> set[str]:
    """Functions in which a cancel may end."""
    found = set[str]()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.ExceptHandler) and names(node.type) & CANCELS:
                last = node.body[-1]
                if not (isinstance(last, ast.Raise) and last.exc is None):
                    found.add(function.name)
            if isinstance(node, ast.Call) and "suppress" in names(node.func) and names(ast.Tuple(node.args)) & CANCELS:
                found.add(function.name)
    return found


def test_no_handler_swallows_a_cancel() -> None:
    """A call whose handler returns after it was cancelled leaks (grpc#43360), and its picture is drawn on."""
    found = {(file.name, name) for file, tree in sources(ROOMS[0]) for name in swallowing(tree)}
    assert found == LETS_GO


@pytest.mark.parametrize(
    "caught",
    ["except asyncio.CancelledError:", "except BaseException:", "except:", "except (OSError, CancelledError):"],
)
def test_a_swallowed_cancel_would_be_seen(caught: str) -> None:
    function = f"async def call():\n    try:\n        await x\n    {caught}\n        "
    assert swallowing(ast.parse(function + "pass")) == {"call"}
    assert swallowing(ast.parse(function + "log()\n        raise")) == set()
    assert swallowing(ast.parse("def f():\n    with suppress(asyncio.CancelledError):\n        pass")) == {"f"}


def test_calls_of_the_clients_are_cancelled_whatever_happens() -> None:
    """An abandoned call is never collected (grpc#43462)."""
    calls = 0
    for file, tree in sources(ROOMS[1]):
        for function in ast.walk(tree):
            if file.name in ("aio.py", "client.py") and isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.unparse(function)
                if "self._channel(rpc)" in text:
                    calls += 1
                    ends = [ast.unparse(node.finalbody[0]) for node in ast.walk(function) if isinstance(node, ast.Try)]
                    assert ends == ["call.cancel()"], f"{file.name} {function.name}"
    assert calls == 5


def test_all_handlers_are_coroutines() -> None:
    """A sync generator hangs when its call is cancelled (grpc#28999)."""
    for file, servicer in ((generation_service_pb2, GenerationService), (pb, AdapterService)):
        (service,) = file.DESCRIPTOR.services_by_name.values()
        for method in service.methods:
            handler = getattr(servicer, method.name)
            wanted = inspect.isasyncgenfunction if method.server_streaming else inspect.iscoroutinefunction
            assert wanted(handler), method.full_name


def test_no_client_is_instrumented() -> None:
    """OpenTelemetry's interceptor of asyncio clients swallows cancels (opentelemetry-python-contrib#3271)."""
    for file, tree in sources(*ROOMS):
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(module.startswith("opentelemetry.instrumentation") for module in modules), file
            assert not (isinstance(node, ast.Attribute) and node.attr == "intercept_channel"), file
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and "channel" in node.func.attr:
                assert not any(keyword.arg == "interceptors" for keyword in node.keywords), file


FORKING = {"fork", "forkpty", "fork_exec", "Pool", "ProcessPoolExecutor", "Process", "get_context", "set_start_method"}


def forks(tree: ast.Module) -> set[str]:
    """What would start processes by forking this one: calls by name, and loaders of data with workers."""
    found = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in FORKING and not (name == "get_context" and ast.unparse(node).endswith("('spawn')")):
                found.add(name)
            found |= {name for keyword in node.keywords if keyword.arg in ("num_workers", "preexec_fn")}
    return found


def test_nothing_forks() -> None:
    """gRPC's threads and locks do not survive it in the child. Programs are started as `subprocess` does."""
    assert {file.name: found for file, tree in sources(*ROOMS) if (found := forks(tree))} == {}
    for planted in ("os.fork()", "Pool(4)", "DataLoader(x, num_workers=2)", "multiprocessing.get_context('fork')"):
        assert forks(ast.parse(planted))
    for target in dockerfile.TARGETS:
        assert dockerfile.pairs(target, "ENV")["GRPC_ENABLE_FORK_SUPPORT"] == "0"


def test_stubs_take_the_oldest_library_that_may_be_installed() -> None:
    """They refuse an older one than the generator's when they are imported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    least = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(asked), re.M))
    texts = [file.read_text() for file in (ROOT / "proto" / "loramux" / "v1").glob("*_pb2*.py")]
    generated = set(re.findall(r"^GRPC_GENERATED_VERSION = '([\d.]+)'", "\n".join(texts), re.M))
    for name in ("grpcio", "grpcio-status", "grpcio-health-checking", "grpcio-reflection"):
        assert {least[name]} == generated, name
    messages = re.findall(r"Domain\.PUBLIC,\s+(\d+),\s+(\d+),\s+(\d+)", "\n".join(texts))
    assert {".".join(version) for version in messages} == {least["protobuf"]}


def test_a_store_on_a_network_file_system_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / {tmp_path} rw - nfs4 x rw\n")
    monkeypatch.setattr(store, "refuse_network", lambda folder: refuse_network(folder, mounts))
    with pytest.raises(UnsafeFilesystem, match="nfs4"):
        store.Store.open(tmp_path / "store")


def test_no_histogram_names_adapters() -> None:
    collectors = list(Metrics().registry._collector_to_names)
    histograms = [each for each in collectors if isinstance(each, Histogram)]
    assert len(histograms) > 5
    assert not any("adapter" in each._labelnames for each in histograms)


@pytest.fixture
async def living(tmp_path: Path) -> AsyncIterator[Living]:
    made = Living(tmp_path / "store")
    await made.start()
    yield made
    await made.shut()


async def test_a_watcher_holds_up_no_stop(living: Living) -> None:
    """It hears that the server stops, and that is the end of its stream, long before anybody kills the server."""
    async with grpc.aio.insecure_channel(living.target) as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        assert await watch.read()
        living.stop.set()
        done, _ = await asyncio.wait([living.ended], timeout=15)
        assert done, "the stop waits for it"


async def test_a_stop_waits_for_what_calls_do_last(living: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC's own stop does not: it ends the call, and the upload has not yet been let go of."""
    leave, leaving, go_on = Upload.leave, threading.Event(), threading.Event()

    def slowly(self: Upload) -> None:
        leaving.set()
        assert go_on.wait(30)
        leave(self)

    monkeypatch.setattr(Upload, "leave", slowly)
    spec = pb.UploadSpec(name="x", size_bytes=1 << 20, sha256="0" * 64, upload_id="u" * 32)
    async with grpc.aio.insecure_channel(living.target) as channel:
        call = adapter_service_pb2_grpc.AdapterServiceStub(channel).UploadAdapter()
        await call.write(pb.UploadAdapterRequest(spec=spec))
        await call.write(pb.UploadAdapterRequest(chunk=bytes(1000)))
        async with asyncio.timeout(20):
            while not living.sample("loramux_upload_bytes_total"):
                await asyncio.sleep(0.01)
        closing, close = asyncio.Event(), living.app.store.close
        loop = asyncio.get_running_loop()

        def closed() -> None:
            loop.call_soon(closing.set)
            close()

        monkeypatch.setattr(living.app.store, "close", closed)
        living.stop.set()
        assert await asyncio.to_thread(leaving.wait, 20)
        await asyncio.sleep(1.0)  # more than enough for a stop that does not wait
        assert not closing.is_set() and not living.ended.done()
        go_on.set()
        await living.ended
    assert closing.is_set()


def manifests() -> Iterator[dict[str, Any]]:
    for file in sorted((ROOT / "deploy").rglob("*.yaml")):
        yield from (each for each in yaml.safe_load_all(file.read_text()) if isinstance(each, dict))


def test_no_proxy_is_shipped_that_would_cut_streams() -> None:
    """Who puts one in front is told to let streams last."""
    routes = {"Ingress", "HTTPRoute", "GRPCRoute", "VirtualService"}
    for each in manifests():
        assert each.get("kind") not in routes and "static_resources" not in each
    assert "It must let streams last" in (ROOT / "docs" / "operations.md").read_text()


def test_what_scales_is_what_waits() -> None:
    kinds = [each.get("kind") for each in manifests()]
    assert "HorizontalPodAutoscaler" not in kinds
    (scaled,) = (each["spec"] for each in manifests() if each.get("kind") == "ScaledObject")
    (trigger,) = scaled["triggers"]
    assert trigger["type"] == "prometheus" and "loramux_images_waiting" in trigger["metadata"]["query"]


# the page

TRAPS = (
    "a swallowed cancel",
    "abandoned calls of clients",
    "sync handlers",
    "instrumented clients",
    "forking",
    "generated code newer than the library",
    "errors of more than 8 KiB",
    "message sizes",
    "port reuse",
    "an abort is not the end",
    "watchers hold up a stop",
    "adapters as labels",
    "WAL on a network file system",
    "a rename that is not on the disk",
    "a page's token with another filter",
    "connections that stay with a server",
    "half-open connections",
    "a proxy's timeout",
    "scaling by CPU",
    "serving before it is warm",
)


def test_every_trap_is_on_the_page_with_tests_that_run() -> None:
    rows = re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \| (.+) \| (.+) \|$", PAGE.read_text(), re.M)
    assert tuple(name for name, *_ in rows) == TRAPS
    for name, comes, why, tests in rows:
        assert len(comes) > 15 and len(why) > 20, name
        assert re.findall(r"`tests/[\w/]+\.py::test_\w+`", tests), f"{name} names no test"
    assert missing(PAGE.read_text(), ROOT) == []
