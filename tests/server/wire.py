"""A server in this process with its network side: tests reach into it while clients speak to it over gRPC."""

import asyncio
import io
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from PIL import Image

from loramux.v1 import adapter_service_pb2_grpc, generation_pb2, generation_service_pb2_grpc
from loramux_server.app import App, Ready
from loramux_server.settings import Settings
from loramux_store.record import UploadSpec


class WireServer:
    """An app that serves on a port of its own, on a loop in a thread of its own. Tensor work has one thread, which is
    plenty for tiny bases."""

    def __init__(self, base: Path | str, store: Path, **settings: object) -> None:
        values = {"base": str(base), "store": store, "device": "cpu", "pool_bytes": 256 << 20, "threads": 1, **settings}
        self._threads = torch.get_num_threads()
        self.app = App(Settings.model_validate({**values, "port": 0, "metrics_port": 0}))
        self._stop = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._ready = Future[Ready]()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.channel = self.connect()

    def _run(self) -> None:
        self._loop.run_until_complete(self.app.run(self._ready.set_result, self._stop))
        self._loop.close()

    def connect(self) -> grpc.Channel:
        """A client's connection of its own."""
        ready = self._ready.result(20)
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        return grpc.insecure_channel(f"{ready.host}:{ready.grpc_port}", options)

    @property
    def pictures(self) -> generation_service_pb2_grpc.GenerationServiceStub:
        return generation_service_pb2_grpc.GenerationServiceStub(self.channel)

    @property
    def shelf(self) -> adapter_service_pb2_grpc.AdapterServiceStub:
        return adapter_service_pb2_grpc.AdapterServiceStub(self.channel)

    def publish(self, adapters: Sequence[Any]) -> None:
        for adapter in adapters:
            self.app.store.publish(adapter.file, UploadSpec(name=adapter.name))

    def draw(self, request: generation_pb2.GenerateRequest) -> np.ndarray:
        """The request's first picture, [H, W, 3] uint8."""
        return pixels(self.pictures.Generate(request, timeout=60).images[0])

    def metric(self, name: str, **labels: str) -> float:
        return self.app.metrics.registry.get_sample_value(f"loramux_{name}", labels) or 0.0

    def close(self) -> None:
        self.channel.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        torch.set_num_threads(self._threads)


class Watched(WireServer):
    """Knows who was in each forward, by seed, and of one request, the culprit, which rows of its last forward were
    finite and how many forwards there were when it ended. Ticks stand still while `going` is not set; with `pauses`,
    after the first forward of the culprit."""

    def __init__(self, base: Path, store: Path) -> None:
        super().__init__(base, store)
        self.forwards: list[frozenset[int]] = []
        self.culprit, self.pauses = -1, False
        self.finite: list[bool] = []
        self.ended = 0
        self.going = threading.Event()
        self.going.set()
        runner, engine = self.app.runner, self.app.engine
        fill_forwards(runner._scheduler)
        predict, end = engine._predict, runner._end

        def ending(running: Any, *rest: Any) -> None:
            if running.job.seed == self.culprit:
                self.ended = len(self.forwards)
            end(running, *rest)

        def watched(keys: Any) -> Any:
            assert self.going.wait(20)
            self.forwards.append(frozenset(self.seed(key) for key in keys))
            if self.pauses and self.culprit in self.forwards[-1]:
                self.pauses = False
                self.going.clear()
            predictions = predict(keys)
            for key, rows in zip(keys, predictions, strict=True):
                if self.seed(key) == self.culprit:
                    self.finite = [bool(torch.isfinite(row).all()) for row in rows]
            return predictions

        engine._predict, runner._end = watched, ending

    def seed(self, key: Any) -> int:
        return self.app.runner._jobs[key.job].job.seed

    def knocks(self) -> bool:
        """Whether the culprit waits for nothing but the next tick."""
        return any(each.job.seed == self.culprit and each.awaited == 0 for each in list(self.app.runner._jobs.values()))

    def nothing_is_left(self) -> bool:
        engine, scheduler = self.app.engine, self.app.runner._scheduler
        residents = engine.adapters.device.residents.values()
        rows = {
            name: group.rows.free + sum(len(each.rows.get(name, ())) for each in residents)
            for name, group in engine.groups.items()
        }
        return (
            not engine._images
            and not self.app.runner._jobs
            and scheduler.waiting == scheduler.running == 0
            and self.metric("requests_in_flight") == 0
            and all(each.users == 0 for each in residents)
            and rows == {name: group.rows.size - 1 for name, group in engine.groups.items()}
        )


def fill_forwards(scheduler: Any) -> None:
    """Forwards take whoever is there, whatever the machine measures."""
    scheduler._room = lambda area, claims, enough: min(scheduler._max_rows(area), sum(each.demand for each in claims))


def request(seed: int, steps: int, **fields: object) -> generation_pb2.GenerateRequest:
    values = {"prompt": "a dog", "seed": seed, "steps": steps, "sampler": generation_pb2.SAMPLER_DDIM, **fields}
    return generation_pb2.GenerateRequest(**values)  # type: ignore[arg-type]


def pixels(image: generation_pb2.Image) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image.data)))


def distance(one: np.ndarray, other: np.ndarray) -> int:
    """Largest difference of any pixel, in 255ths."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def blend(**weights: float) -> generation_pb2.Blend:
    return generation_pb2.Blend(
        entries=[generation_pb2.BlendEntry(adapter=name, weight=weight) for name, weight in weights.items()]
    )


def reason_of(error: grpc.RpcError) -> str:
    """The reason in the ErrorInfo of a failed call."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None, "no details"
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.domain == "loramux"
    return info.reason
