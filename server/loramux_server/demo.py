"""`loramux demo`: the main job, shown on the built-in base.

Takes: where to write the picture. Gives: a table of concurrent requests that each had their own
blend, how many different blends shared a forward, and a contact sheet. Starts a server of its own
as a user would, and meets it only through the client and over HTTP.
"""

from __future__ import annotations

import asyncio
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from loramux_client import AsyncClient
from loramux_client.pictures import Generation, Step
from loramux_client.shelf import Adapter
from loramux_server.demo_requests import SHEET_GUIDANCE, SHEET_STEPS, Ask, crowd, sheet_blends, sheet_rows
from loramux_server.demo_sheet import Sheet, SheetRow, draw_sheet

ENOUGH = 4
"""Different blends that one forward must have held for the demo to count as shown."""

SEPIA = Path(__file__).parent / "builtin" / "demo" / "sepia.safetensors"
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


@dataclass(frozen=True, slots=True)
class Drawn:
    """A request of the crowd, done."""

    ask: Ask
    generation: Generation
    seconds: float


def demo(
    *,
    output: Annotated[Path, Parameter(name=["--output", "--out", "-o"])] = Path("out/demo.png"),
) -> int:
    """Serve, upload an adapter meanwhile, draw many blends at once, and write a contact sheet.

    Parameters
    ----------
    output
        The contact sheet, a PNG file.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(prefix="loramux-demo-") as folder:
            asyncio.run(_show(Path(folder), output))
    except DemoFailed as failure:
        print(f"loramux demo: {failure}", file=sys.stderr)
        return 1
    return 0


async def _show(folder: Path, output: Path) -> None:
    console = Console(highlight=False)
    async with _serving(folder) as ready, AsyncClient(ready.grpc) as client:
        console.print(f"serving {ready.base} at {ready.grpc}")
        plain = await _draw_while_uploading(client, console)
        adapters = [adapter async for adapter in client.list_adapters()]
        asks = crowd(adapters)
        drawn = await asyncio.gather(*(_timed(client, ask) for ask in asks))
        console.print(_table(drawn))
        distinct = await asyncio.to_thread(_read_gauge, ready.http)
        console.print(f"distinct blends in the fullest forward: {distinct}")
        sheet = await _sheet(client, adapters, plain)
        await asyncio.to_thread(lambda: draw_sheet(sheet).save(output))
        console.print(f"wrote {output}")
    if distinct < ENOUGH:
        raise DemoFailed(f"{distinct} different blends shared a forward; at least {ENOUGH} should have")


# The server.


@asynccontextmanager
async def _serving(folder: Path) -> AsyncIterator[Ready]:
    """A server with a store of its own, stopped gracefully at the end."""
    command = ["-m", "loramux_client.cli", "serve", "--port", "0", "--metrics-port", "0"]
    with (folder / "server.log").open("w+b") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, "--store", str(folder / "store"), stdout=asyncio.subprocess.PIPE, stderr=log
        )
        try:
            yield await _ready(process, folder / "server.log")
        finally:
            await _stop(process)


async def _ready(process: asyncio.subprocess.Process, log: Path) -> Ready:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            async for line in process.stdout:
                if (ready := read_ready(line.decode())) is not None:
                    return ready
    except TimeoutError:
        pass
    said = log.read_text(errors="replace").strip().splitlines()[-5:]
    raise DemoFailed("\n  ".join(["the server did not start; it said:", *said]))


def read_ready(line: str) -> Ready | None:
    """What a ready line says; None for other lines."""
    words = line.split()
    if words[:2] != ["loramux", "ready"]:
        return None
    said = dict(word.partition("=")[::2] for word in words[2:])
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


def _read_gauge(http: str) -> int:
    with urllib.request.urlopen(f"http://{http}/metrics", timeout=10) as answer:
        return read_gauge(answer.read().decode())


def read_gauge(metrics: str) -> int:
    """How many different blends the fullest forward held, from the server's metrics."""
    for line in metrics.splitlines():
        name, _, value = line.partition(" ")
        if name == GAUGE:
            return int(float(value))
    raise DemoFailed(f"the server's metrics lack {GAUGE}")


# Requests.


async def _draw(client: AsyncClient, ask: Ask) -> Generation:
    return await client.generate(
        ask.prompt, adapters=dict(ask.blend), seed=ask.seed, steps=ask.steps, guidance_scale=ask.guidance
    )


async def _timed(client: AsyncClient, ask: Ask) -> Drawn:
    begun = time.monotonic()
    generation = await _draw(client, ask)
    return Drawn(ask, generation, time.monotonic() - begun)


async def _draw_while_uploading(client: AsyncClient, console: Console) -> list[bytes]:
    """The sheet's pictures without adapters; an adapter is uploaded while they are being drawn."""
    adapters = [adapter async for adapter in client.list_adapters()]
    rows = [_sheet_ask(prompt, seed, ()) for prompt, seed in sheet_rows(adapters)]
    drawing = [asyncio.create_task(_draw(client, ask)) for ask in rows]
    async for event in client.stream("", steps=SHEET_STEPS):
        if isinstance(event, Step) and event.step == 1:
            uploaded = await client.upload(
                SEPIA, trigger_words=["sepia"], description="old photographs", labels={"kind": "style"}
            )
            waiting = sum(not task.done() for task in drawing)
            name = uploaded.version.adapter if uploaded.version else SEPIA.stem
            console.print(f"uploaded {name} while {waiting + 1} pictures were being drawn")
    return [generation.images[0].data for generation in await asyncio.gather(*drawing)]


def _table(drawn: Sequence[Drawn]) -> Table:
    table = Table(title=f"{len(drawn)} requests at once, each with its own blend", title_justify="left")
    for column in ("request", "blend (rank rows are per adapter, nothing is merged)"):
        table.add_column(column)
    for column in ("steps", "guidance", "wall s"):
        table.add_column(column, justify="right")
    for one in drawn:
        ask = one.ask
        table.add_row(ask.prompt, ask.blend_text(), str(ask.steps), f"{ask.guidance:g}", f"{one.seconds:.2f}")
    return table


# The contact sheet.


def _sheet_ask(prompt: str, seed: int, blend: tuple[tuple[str, float], ...]) -> Ask:
    return Ask(prompt, blend, seed, SHEET_STEPS, SHEET_GUIDANCE)


async def _sheet(client: AsyncClient, adapters: Sequence[Adapter], plain: Sequence[bytes]) -> Sheet:
    """Draws what is missing: every row with every blend."""
    rows, blends = sheet_rows(adapters), sheet_blends(adapters)
    asks = [_sheet_ask(prompt, seed, blend) for prompt, seed in rows for blend in blends[1:]]
    drawn = await asyncio.gather(*(_draw(client, ask) for ask in asks))
    width = len(blends) - 1
    ranks = {adapter.name: adapter.latest_version.rank for adapter in adapters}
    return Sheet(
        title="LoRAMux: one resident base, a different blend in every request",
        subtitle=f"Columns of a row share prompt, seed, {SHEET_STEPS} steps, guidance {SHEET_GUIDANCE:g}; "
        f"drawn together, nothing merged. Base {drawn[0].applied.base_digest[:12]}.",
        columns=tuple(column_label(blend, ranks) for blend in blends),
        rows=tuple(
            SheetRow(
                (prompt, f"seed {seed}"),
                (plain[number], *(one.images[0].data for one in drawn[number * width : (number + 1) * width])),
            )
            for number, (prompt, seed) in enumerate(rows)
        ),
    )


def column_label(blend: tuple[tuple[str, float], ...], ranks: dict[str, int]) -> tuple[str, ...]:
    """The label of a column."""
    if not blend:
        return ("no adapter",)
    if len(blend) == 1:
        ((name, weight),) = blend
        return name, f"weight {weight:g}, rank {ranks[name]}"
    return "blend", " + ".join(f"{name} {weight:g}" for name, weight in blend)
