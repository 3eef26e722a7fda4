"""Tiny Stable Diffusion 1.x folders, random adapters for them, and a server without its network side."""

import io
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).parent))  # so that tests import what lies beside them

from random_adapters import ALL_PARTS, RandomAdapter, random_adapter
from tiny_bases import write_tiny_base, write_tiny_lcm, write_tiny_sd2, write_tiny_sdxl
from wire import fill_forwards

from loramux_kernels import Tables
from loramux_server.admission import Admission
from loramux_server.app import BUILTIN_FOLDER, App
from loramux_server.requests import Done, Event, Failed, GenerationRequest, ImageReady, Job
from loramux_server.runner import Runner
from loramux_server.settings import Settings
from loramux_store.record import UploadSpec


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two levels, epsilon prediction."""
    return write_tiny_base(
        tmp_path_factory.mktemp("bases") / "tiny", seed=0, channels=(16, 32), layers=1, prediction="epsilon"
    )


@pytest.fixture(scope="session")
def other_tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three levels of two layers, velocity prediction."""
    return write_tiny_base(
        tmp_path_factory.mktemp("bases") / "other", seed=1, channels=(8, 16, 24), layers=2, prediction="v_prediction"
    )


@pytest.fixture(scope="session")
def tiny_inpainting_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two levels, a UNet that sees latents, mask and the rest of the image."""
    return write_tiny_base(
        tmp_path_factory.mktemp("bases") / "inpainting",
        seed=2,
        channels=(16, 32),
        layers=1,
        prediction="epsilon",
        seen=9,
    )


@pytest.fixture(scope="session")
def tiny_lcm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a latent consistency model."""
    return write_tiny_lcm(tmp_path_factory.mktemp("bases") / "lcm")


@pytest.fixture(scope="session")
def tiny_sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Stable Diffusion 2."""
    return write_tiny_sd2(tmp_path_factory.mktemp("bases") / "sd2")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As SDXL."""
    return write_tiny_sdxl(tmp_path_factory.mktemp("bases") / "sdxl")


def three_adapters(base: Path, folder: Path, strength: float) -> list[RandomAdapter]:
    """Different ranks, alphas and layers; all touch UNet and text encoder."""
    return [
        random_adapter(base, folder, "everything", rank=4, alpha=2, strength=strength, seed=1, parts=ALL_PARTS),
        random_adapter(
            base, folder, "attention", rank=16, alpha=16, strength=strength, seed=2, parts=("attn", "text_encoder.")
        ),
        random_adapter(
            base, folder, "convolution", rank=7, alpha=3.5, strength=2 * strength, seed=3, parts=("resnets", "q_proj")
        ),
    ]


class Server:
    """An app without its network side: requests in, pictures out; every forward's tables are kept."""

    def __init__(self, base: str, store: Path, **settings: object) -> None:
        self.forwards: list[Mapping[str, Tables]] = []
        values = {"base": base, "store": store, "device": "cpu", "pool_bytes": 256 << 20, **settings}
        self.app = App(Settings.model_validate(values), observer=self._keep)
        fill_forwards(self.app.runner._scheduler)
        self.app.runner.start()

    @property
    def admission(self) -> Admission:
        return self.app.admission

    @property
    def runner(self) -> Runner:
        return self.app.runner

    def _keep(self, tables: Mapping[str, Tables]) -> None:
        copies = {
            name: replace(t, idx=t.idx.clone(), scale=t.scale.clone(), nrank=t.nrank.clone())
            for name, t in tables.items()
        }
        self.forwards.append(copies)

    def publish(self, adapters: Sequence[RandomAdapter]) -> None:
        for adapter in adapters:
            self.app.store.publish(adapter.file, UploadSpec(name=adapter.name))

    def draw(self, requests: Sequence[GenerationRequest]) -> list[np.ndarray]:
        """Runs all requests at once; the first picture of each, [H, W, 3] uint8."""
        handles = [self.submit(request) for request in requests]
        return [handle.pictures()[0] for handle in handles]

    def submit(self, request: GenerationRequest) -> "Handle":
        handle = Handle(self.admission.admit(request))
        self.runner.submit(handle.job, handle.hear)
        return handle

    def close(self) -> None:
        self.runner.stop()
        self.app.store.close()


class Handle:
    """One request in flight, and everything it heard."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.events: list[Event] = []
        self._ended = threading.Event()

    def hear(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Done | Failed):
            self._ended.set()

    def pictures(self) -> list[np.ndarray]:
        assert self._ended.wait(120), "no end within 120 s"
        for event in self.events:
            if isinstance(event, Failed):
                raise event.error
        ready = sorted((e for e in self.events if isinstance(e, ImageReady)), key=lambda e: e.index)
        return [np.asarray(Image.open(io.BytesIO(e.data))) for e in ready]


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator["type[Server]"]:
    """Makes servers that are closed when the test ends: make_server(base_folder, **settings)."""
    servers: list[Server] = []

    def make(base: Path | str, **settings: object) -> Server:
        servers.append(Server(str(base), tmp_path / f"store{len(servers)}", **settings))
        return servers[-1]

    yield make  # type: ignore[misc]
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def built_in_base() -> Path:
    """The base that ships."""
    return BUILTIN_FOLDER / "base"


@pytest.fixture(name="three_adapters", scope="session")
def _three_adapters() -> object:
    return three_adapters


@pytest.fixture(scope="session")
def server_class() -> type[Server]:
    """For tests that keep one server over many cases."""
    return Server


@pytest.fixture
def server(make_server: Callable[..., Server], tiny_base: Path, tmp_path: Path) -> Server:
    """A server on the tiny base with the three adapters on its shelf."""
    server = make_server(tiny_base)
    server.publish(three_adapters(tiny_base, tmp_path, 0.5))
    return server


@pytest.fixture
def server_with_a_small_pool(server: Server) -> Server:
    """Room for the largest adapter only: every swap evicts."""
    for group in server.app.engine.groups.values():
        group.open(20, torch.device("cpu"))
    return server


@pytest.fixture
def wait_for() -> Callable[[Callable[[], object]], None]:
    """Waits until a condition holds, 20 s at most."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "did not happen within 20 s"
            time.sleep(0.01)

    return wait
