"""Caches of adapters without a base: versions that are only names and sizes, and a reader that a test replaces."""

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import torch

from loramux_kernels.pool import RowAllocator
from loramux_server.engine.adapter_cache import AdapterCache
from loramux_server.engine.compiled_reader import HostAdapter, Read
from loramux_server.engine.device_tier import Lease
from loramux_server.engine.host_tier import READERS, HostTier
from loramux_server.engine.module_factors import ModuleFactors
from loramux_server.metrics import Metrics
from loramux_store.record import Embedding

ROW_BYTES = 100
"""Of one rank row, on the host."""


def embedding(name: str) -> Any:
    """Of 3 vectors of width 8: 96 bytes."""
    found = Embedding(name, 3, {"text_encoder": 8})
    return _version(name, [], 96, found)


def version(name: str, rank: int, bundled: int = 0) -> Any:
    """Of one module, p, and so many bundled embeddings like that one."""
    embeddings = [Embedding(f"{name}-{number}", 3, {"text_encoder": 8}) for number in range(bundled)]
    return _version(name, [SimpleNamespace(module="p", rank=rank)], rank * ROW_BYTES // 2 + bundled * 96, *embeddings)


def _version(name: str, matched: list[Any], device_bytes: int, *embeddings: Embedding) -> Any:
    report = SimpleNamespace(matched=matched)
    return SimpleNamespace(
        digest=name, adapter=name, number=1, report=report, device_bytes=device_bytes, embeddings=embeddings
    )


def quickly(version: Any) -> HostAdapter:
    """What a version would have."""
    vectors = tuple({"text_encoder": torch.ones(3, 8)} for _ in version.embeddings)
    rows = sum(module.rank for module in version.report.matched)
    factors = {"p": ModuleFactors({"a": torch.ones(rows, ROW_BYTES // 4)}, 1.0)} if rows else {}
    return HostAdapter(factors, vectors)


class Pool:
    """A cache over one layer group of so many rows, with a reader that is quick."""

    def __init__(self, rows: int, host_bytes: int = 1 << 20, read: Read = quickly) -> None:
        self.written: list[Mapping[str, object]] = []
        group = SimpleNamespace(name="g", rooms={"g": RowAllocator(rows + 1)}, paths=["p"], number_bytes={"g": 50})
        group.needs = lambda modules: {"g": max(module.rank for module in modules)}
        group.write = lambda rows, factors: self.written.append(factors)
        self.metrics = Metrics()
        self.host = HostTier(read, host_bytes, self.metrics)
        self.cache = AdapterCache(cast("Any", {"g": group}), self.host, self.metrics, 512, torch.device("cpu"))
        self.group = group

    def ask(self, **ranks: int) -> "Future[Lease]":
        return self.ask_for(version(name, rank) for name, rank in ranks.items())

    def ask_for(self, versions: Iterable[Any]) -> "Future[Lease]":
        future = self.cache.request(list(versions))
        self.settle()
        return future

    def settle(self) -> None:
        """Waits until readers and loader have nothing to do."""
        for _ in range(2):  # the loader may have something read
            settle(self.host)
            self.cache._loader.submit(int).result(20)

    def release(self, future: "Future[Lease]") -> None:
        self.cache.release(future.result(0))
        self.settle()

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"loramux_{name}", labels) or 0.0


def settle(host: HostTier) -> None:
    """Waits until the readers have nothing to do: every one of them stands at a barrier."""
    barrier = threading.Barrier(READERS)
    for waiting in [host._readers.submit(barrier.wait, 20) for _ in range(READERS)]:
        waiting.result(20)
