"""A server that is asked for more than it can do: open loop at one and a half times its capacity.

Takes a duration; starts a server like any user's, finds out what it does when it is kept busy, then sends requests at
random moments whatever becomes of those before, as many clients do who know nothing of one another. Gives goodput, what
was refused and how, the queue, memory, and how long a health check takes meanwhile; then the same of thousands of
streams that are open at once.
"""

import asyncio
import random
import statistics
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from loramux_client import AsyncClient
from loramux_client.errors import LoraMuxClientError, ResourceExhausted
from loramux_server.bench import streams
from loramux_server.bench.harness import Row
from loramux_server.demo_server import Ready, serving

OVERLOAD = 1.5
_STEPS = 20
_BUSY = 24  # requests at once that keep a server busy
_BLENDS = ({}, {"ink": 0.8}, {"glossy": 0.6, "noto": 0.4}, {"ink": 0.3, "zib": 0.9})
_PROMPTS = ("a red apple", "a dog", "a house", "a fish")


@dataclass(slots=True)
class _Heard:
    """How requests ended; seconds of health checks; samples of the server's metrics, a quarter of a second apart."""

    ends: Counter[str] = field(default_factory=Counter[str])
    health: list[float] = field(default_factory=list[float])
    memory: list[float] = field(default_factory=list[float])
    queued: list[float] = field(default_factory=list[float])


def measure(seconds: float = 180.0, max_queue: int = 64) -> list[Row]:
    """seconds: of overload; finding the capacity takes a sixth of that, twice: before and after."""
    with tempfile.TemporaryDirectory() as folder:
        return [
            *asyncio.run(_measure(Path(folder), seconds, max_queue)),
            *asyncio.run(_measure_streams(Path(folder), streams.Crowd())),
        ]


async def _measure_streams(folder: Path, crowd: streams.Crowd) -> list[Row]:
    async with serving(folder) as ready:
        return await streams.measure(ready.grpc, crowd)


async def _measure(folder: Path, seconds: float, max_queue: int) -> list[Row]:
    async with (
        serving(folder, "--max-queue", str(max_queue)) as ready,
        AsyncClient(ready.grpc, timeout=120, retries=0) as client,
    ):
        async with _watched(client, ready):
            await _closed_loop(client, seconds / 12)  # whatever is made once is made
            before = await _closed_loop(client, seconds / 6)
        async with _watched(client, ready) as heard:
            await _open_loop(client, heard, before * OVERLOAD, seconds)
        async with _watched(client, ready):
            after = await _closed_loop(client, seconds / 6)
    capacity = (before + after) / 2
    sent, served = sum(heard.ends.values()), heard.ends["in time"] + heard.ends["after the end"]
    third = len(heard.memory) // 3
    grown = max(heard.memory[-third:]) - max(heard.memory[third : 2 * third])
    what = f"open loop of {seconds:g} s at {OVERLOAD:g}x"
    return [
        Row(f"{what}, pictures a second / capacity", heard.ends["in time"] / seconds / capacity, "x", ">=0.9"),
        Row(f"{what}, requests sent", sent, "requests"),
        Row(f"{what}, refused with RESOURCE_EXHAUSTED and a time to wait", heard.ends["refused"] / sent, "of all"),
        Row(f"{what}, ended in any other way", sent - served - heard.ends["refused"], "requests", "<=0"),
        Row(f"{what}, most pictures in the queue / bound", max(heard.queued) / max_queue, "x", "<=1"),
        Row(f"{what}, memory, most in the last third - in the second", grown / (1 << 20), "MiB", "<=8"),
        Row(f"{what}, health check, median", statistics.median(heard.health) * 1e3, "ms", "<=100"),
    ]


async def _closed_loop(client: AsyncClient, seconds: float) -> float:
    """Pictures a second while there is always more to draw."""
    started, drawn = time.monotonic(), 0

    async def ask(number: int) -> None:
        nonlocal drawn
        chance = random.Random(number)
        while time.monotonic() < started + seconds:
            await _generate(client, chance)
            drawn += 1

    await asyncio.gather(*(ask(number) for number in range(_BUSY)))
    return drawn / (time.monotonic() - started)


@asynccontextmanager
async def _watched(client: AsyncClient, ready: Ready) -> AsyncGenerator[_Heard]:
    """Health checks and metrics of what happens within; they cost what they cost in every phase, so that phases may be
    compared."""
    heard = _Heard()
    watching = [asyncio.create_task(watch) for watch in (_watch_health(client, heard), _watch_metrics(ready, heard))]
    try:
        yield heard
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)


async def _open_loop(client: AsyncClient, heard: _Heard, rate: float, seconds: float) -> None:
    """Requests at exponential intervals, none of which waits for another."""
    chance, asked = random.Random(0), set[asyncio.Task[None]]()
    due = started = time.monotonic()
    while due < started + seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        task = asyncio.create_task(_count(heard, started + seconds, lambda: _generate(client, chance)))
        asked.add(task)
        task.add_done_callback(asked.discard)
        due += chance.expovariate(rate)
    await asyncio.gather(*asked)


async def _count(heard: _Heard, end: float, ask: Callable[[], Awaitable[object]]) -> None:
    try:
        await ask()
        heard.ends["in time" if time.monotonic() < end else "after the end"] += 1
    except ResourceExhausted as refusal:
        heard.ends["refused" if refusal.reason == "QUEUE_FULL" and refusal.retry_after else "refused otherwise"] += 1
    except LoraMuxClientError as error:
        heard.ends[type(error).__name__] += 1


async def _generate(client: AsyncClient, chance: random.Random) -> None:
    """Without an id: answers that the server keeps for a while would count as memory that grows."""
    drawn = await client.generate(
        chance.choice(_PROMPTS),
        adapters=chance.choice(_BLENDS),
        steps=_STEPS,
        seed=chance.randrange(1 << 20),
        request_id="",
    )
    assert drawn.images


async def _watch_health(client: AsyncClient, heard: _Heard) -> None:
    while True:
        started = time.monotonic()
        await client.health("")
        heard.health.append(time.monotonic() - started)
        await asyncio.sleep(0.2)


async def _watch_metrics(ready: Ready, heard: _Heard) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # none is for the loopback

    def scrape() -> dict[str, float]:
        with opener.open(f"http://{ready.http}/metrics", timeout=10) as answer:
            lines = [line.rpartition(" ") for line in answer.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    while True:
        sample = await asyncio.to_thread(scrape)
        heard.memory.append(sample["process_resident_memory_bytes"])
        heard.queued.append(sample["loramux_images_waiting"] + sample["loramux_images_running"])
        await asyncio.sleep(0.25)
