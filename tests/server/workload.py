"""A day of a server's life in seconds: everything that dashboards and alerts look at happens to it once."""

import asyncio
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from certificates import authority, sign
from living import Living

from loramux_client import tls_credentials
from loramux_client.errors import LoraMuxClientError
from loramux_client.pictures import Step
from loramux_server.access import Scope, digest_of
from loramux_server.app import BUILTIN_FOLDER
from loramux_server.metrics import Metrics

FILE = BUILTIN_FOLDER / "adapters" / "ink.safetensors"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(metrics: Metrics) -> Samples:
    """Every series with its value."""
    return {
        (family.name, (("sample", sample.name), *sorted(sample.labels.items()))): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


class Day:
    """One server, with certificate, tokens, a pool in which two adapters do not fit and a short queue."""

    def __init__(self, folder: Path) -> None:
        ca, self._folder = authority(), folder
        self._ca_file, _ = ca.write(folder, "ca")
        cert, key = sign(ca, "server", timedelta(days=3)).write(folder, "server")
        self._tokens = folder / "tokens.toml"
        self._tokens.write_text(f'[boss]\nsha256 = "{digest_of("boss")}"\nscopes = ["{Scope.ADMIN}"]\n')
        self.living = Living(
            folder / "store", tls_cert=cert, tls_key=key, tokens=self._tokens, pool_bytes=4_100_000, max_queue=4
        )
        self.seen: list[Samples] = []

    async def happens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """All of it; what the metrics were is in `seen`, again and again."""
        credentials = tls_credentials(self._ca_file)
        await self.living.start(token="boss", credentials=credentials)
        try:
            for part in (
                self._draw,
                self._wait_for_a_disk,
                self._give_up,
                self._be_refused,
                self._change_the_shelf,
                self._ask_for_nothing,
            ):
                await part()
                self._look()
            await self._run_out_of_memory(monkeypatch)
            await self._exchange_tokens_for_rubbish()
            self._look()
        finally:
            await self.living.shut()

    def _look(self) -> None:
        self.seen.append(samples(self.living.app.metrics))

    async def _draw(self) -> None:
        for adapters in (["ink"], ["ink"], ["noto"], ["ink"]):
            await self.living.client.generate("a red apple", steps=2, adapters=adapters)

    async def _wait_for_a_disk(self) -> None:
        host, go_on = self.living.app.engine.adapters.host, threading.Event()
        read = host.read

        def slowly(version: Any) -> Any:
            assert go_on.wait(20)
            return read(version)

        host.read = slowly
        drawing = asyncio.create_task(self.living.client.generate("a red apple", steps=2, adapters=["zib"]))
        await self._until("loramux_images_waiting")
        self._look()
        go_on.set()
        await drawing

    async def _give_up(self) -> None:
        story = self.living.client.stream("a red apple", steps=150)
        async for event in story:
            if isinstance(event, Step):
                break
        self._look()
        await story.aclose()
        await self._until("loramux_cancelled_total", stage="denoise")

    async def _be_refused(self) -> None:
        for asking in ({"steps": 100_000}, {"num_images": 5}):
            with pytest.raises(LoraMuxClientError):
                await self.living.client.generate("a red apple", **asking)  # type: ignore[arg-type]

    async def _change_the_shelf(self) -> None:
        client = self.living.client
        await client.upload(FILE.read_bytes(), "mine")
        with pytest.raises(LoraMuxClientError):
            await client.upload(b"not safetensors at all", "bad")
        await client.download("mine", self._folder / "mine.safetensors")
        for name in ("ink", "zib", "glossy"):  # together more than pins may take of the pool
            await asyncio.to_thread(self.living.app.store.pin_adapter, name, "device")
        await client.pin_adapter("noto", "host")
        await self._until("loramux_adapter_pins_unmet")
        await client.delete_adapter("mine")

    async def _ask_for_nothing(self) -> None:
        async with grpc.aio.secure_channel(
            f"localhost:{self.living.at.grpc_port}", tls_credentials(self._ca_file)
        ) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary("/no/such")(b"")

    async def _run_out_of_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = self.living.app.engine
        predict = engine._predict

        def full(keys: Any) -> Any:
            if len(keys) > 1:
                raise torch.OutOfMemoryError("full")
            return predict(keys)

        monkeypatch.setattr(engine, "_predict", full)
        made = await self.living.client.generate("a red apple", steps=4, num_images=2)
        assert len(made.images) == 2

    async def _exchange_tokens_for_rubbish(self) -> None:
        self._tokens.write_text("rubbish")
        await self._until("loramux_reloads_total", what="tokens", outcome="refused")

    async def _until(self, metric: str, **labels: str) -> None:
        """It has a value."""
        async with asyncio.timeout(20):
            while not self.living.app.metrics.registry.get_sample_value(metric, labels):
                await asyncio.sleep(0.02)


def moved(day: Day) -> set[str]:
    """Metrics of which a series came up with a value, or changed it, since the server was made."""
    before = samples(Metrics())
    return {
        _full(name, key)
        for seen in day.seen
        for (name, key), value in seen.items()
        if value != before.get((name, key), 0.0)
    }


def _full(family: str, key: tuple[tuple[str, str], ...]) -> str:
    return f"{family}_total" if dict(key)["sample"] == f"{family}_total" else family


def label_values(day: Day) -> Iterator[tuple[str, str, str]]:
    """Metric, label and value of every series that there was."""
    for seen in day.seen:
        for name, key in seen:
            yield from ((_full(name, key), label, value) for label, value in key if label not in ("sample", "le"))
