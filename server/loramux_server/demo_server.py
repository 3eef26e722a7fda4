"""The demo's own server: a process like any user's, with a store that ends with it.

Takes: a folder. Gives: where the server answers, and its count of blends. Does not know the demo.
"""

from __future__ import annotations

import asyncio
import sys
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 120.0
STOP_SECONDS = 40.0
GAUGE = "loramux_distinct_blends_per_forward_max"


class DemoFailed(Exception):
    """The demo could not show what it is there to show."""


@dataclass(frozen=True, slots=True)
class Ready:
    """What a server says when it is serving."""

    grpc: str
    http: str
    base: str


@asynccontextmanager
async def serving(folder: Path, *options: str) -> AsyncGenerator[Ready]:
    """A server on free ports, stopped gracefully at the end."""
    command = ["-m", "loramux_client.cli", "serve", "--port", "0", "--metrics-port", "0", *options]
    log = folder / "server.log"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, "--store", str(folder / "store"), stdout=asyncio.subprocess.PIPE, stderr=stderr
        )
        try:
            yield await _ready(process, log)
        finally:
            await _stop(process)


async def _ready(process: asyncio.subprocess.Process, log: Path) -> Ready:
    assert process.stdout is not None
    with suppress(TimeoutError):
        async with asyncio.timeout(START_SECONDS):
            while line := await process.stdout.readline():
                if (ready := read_ready(line.decode(errors="replace"))) is not None:
                    return ready
    said = log.read_text(errors="replace").strip().splitlines()[-5:]
    raise DemoFailed("\n  ".join(["the server did not start; it said:", *said]))


def read_ready(line: str) -> Ready | None:
    """What a ready line says; None for other lines."""
    words = line.split()
    if words[:2] != ["loramux", "ready"]:
        return None
    said = {name: value for name, _, value in (word.partition("=") for word in words[2:])}
    return Ready(said["grpc"], said["http"], said["base"])


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()


async def fullest_forward(ready: Ready) -> int:
    """How many different blends the fullest forward held so far, as the server counts them."""

    def scrape() -> str:
        # A proxy of the environment is not for the loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{ready.http}/metrics", timeout=10) as answer:
            return answer.read().decode()

    return read_gauge(await asyncio.to_thread(scrape))


def read_gauge(metrics: str) -> int:
    """The gauge in Prometheus' text."""
    for line in metrics.splitlines():
        name, _, value = line.partition(" ")
        if name == GAUGE:
            return int(float(value))
    raise DemoFailed(f"the server's metrics lack {GAUGE}")
