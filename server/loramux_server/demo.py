"""`loramux demo`: the main job, shown on the built-in base.

Takes: where to write the picture. Gives: a table of concurrent requests that each had their own
blend, how many different blends shared a forward, and a contact sheet. Meets the server only
through the client and over HTTP, as any user does.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
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
from loramux_server.demo_requests import GUIDANCE, STEPS, Ask, Blend, blend_text, crowd, sheet_blends, sheet_rows
from loramux_server.demo_server import DemoFailed, Ready, fullest_forward, serving
from loramux_server.demo_sheet import Sheet, SheetRow, draw_sheet

ENOUGH = 4
"""Different blends that one forward must have held for the demo to count as shown."""

SEPIA = Path(__file__).parent / "builtin" / "demo" / "sepia.safetensors"
"""Not among the adapters that an empty store is seeded with."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A request of the crowd, done."""

    ask: Ask
    generation: Generation
    seconds: float


def demo(*, output: Annotated[Path, Parameter(name=["--output", "--out", "-o"])] = Path("out/demo.png")) -> int:
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
    begun = time.monotonic()
    async with serving(folder) as ready, AsyncClient(ready.grpc) as client:
        console.print(f"serving {ready.base} at {ready.grpc}")
        plain = await _draw_while_uploading(client, console)
        adapters = [adapter async for adapter in client.list_adapters()]
        distinct = await _show_crowd(client, ready, adapters, console)
        sheet = await _sheet(client, adapters, plain)
        await asyncio.to_thread(lambda: draw_sheet(sheet).save(output))
    console.print(f"wrote {output} ({time.monotonic() - begun:.0f} s in all)")
    if distinct < ENOUGH:
        raise DemoFailed(f"{distinct} different blends shared a forward; at least {ENOUGH} should have")


async def _draw_while_uploading(client: AsyncClient, console: Console) -> list[bytes]:
    """The sheet's pictures without adapters; one more adapter arrives while they are being drawn."""
    adapters = [adapter async for adapter in client.list_adapters()]
    asks = [Ask(prompt, (), seed) for prompt, seed in sheet_rows(adapters)]
    drawing = [asyncio.create_task(_draw(client, ask)) for ask in asks]
    async with aclosing(client.stream(asks[0].prompt, steps=STEPS)) as events:
        async for event in events:
            if isinstance(event, Step) and event.step == 1:
                await _upload(client, console, drawing)
    return [generation.images[0].data for generation in await asyncio.gather(*drawing)]


async def _upload(client: AsyncClient, console: Console, drawing: Sequence[asyncio.Task[Generation]]) -> None:
    uploaded = await client.upload(SEPIA)
    unfinished = sum(not task.done() for task in drawing)
    if uploaded.version is not None:
        name, rank = uploaded.version.adapter, uploaded.version.rank
        console.print(f"uploaded {name} (rank {rank}) over gRPC while {unfinished} pictures were being drawn")


async def _show_crowd(client: AsyncClient, ready: Ready, adapters: Sequence[Adapter], console: Console) -> int:
    """Draws the crowd at once and tells how; the number of blends in the fullest forward."""
    drawn = await asyncio.gather(*(_timed(client, ask) for ask in crowd(adapters)))
    console.print(_table(drawn))
    distinct = await fullest_forward(ready)
    console.print(f"distinct blends in the fullest forward: {distinct}")
    return distinct


async def _draw(client: AsyncClient, ask: Ask) -> Generation:
    return await client.generate(
        ask.prompt, adapters=dict(ask.blend), seed=ask.seed, steps=ask.steps, guidance_scale=ask.guidance
    )


async def _timed(client: AsyncClient, ask: Ask) -> Drawn:
    begun = time.monotonic()
    generation = await _draw(client, ask)
    return Drawn(ask, generation, time.monotonic() - begun)


def _table(drawn: Sequence[Drawn]) -> Table:
    table = Table(title=f"{len(drawn)} concurrent requests, each with its own blend", title_justify="left")
    table.add_column("request")
    table.add_column("blend")
    for column in ("steps", "guidance", "wall time"):
        table.add_column(column, justify="right")
    for one in drawn:
        ask, seconds = one.ask, f"{one.seconds:.2f} s"
        table.add_row(ask.prompt, blend_text(ask.blend), str(ask.steps), f"{ask.guidance:g}", seconds)
    return table


async def _sheet(client: AsyncClient, adapters: Sequence[Adapter], plain: Sequence[bytes]) -> Sheet:
    """The contact sheet: what was drawn without adapters, and every row again with every blend."""
    rows, (_, *blends) = sheet_rows(adapters), sheet_blends(adapters)
    asks = [Ask(prompt, blend, seed) for prompt, seed in rows for blend in blends]
    drawn = await asyncio.gather(*(_draw(client, ask) for ask in asks))
    pictures = iter(one.images[0].data for one in drawn)
    ranks = {adapter.name: adapter.latest_version.rank for adapter in adapters}
    shared = f"every row: same prompt and seed, {STEPS} steps, guidance {GUIDANCE:g}"
    return Sheet(
        title="LoRAMux: one resident base, a different blend in every request",
        subtitle=f"{shared}; nothing is merged into the base ({drawn[0].applied.base_digest[:12]})",
        columns=tuple(column_label(blend, ranks) for blend in ((), *blends)),
        rows=tuple(
            SheetRow((prompt, f"seed {seed}"), (first, *(next(pictures) for _ in blends)))
            for (prompt, seed), first in zip(rows, plain, strict=True)
        ),
    )


def column_label(blend: Blend, ranks: dict[str, int]) -> tuple[str, ...]:
    """The label of a column: what is on, and its rank or weights."""
    if not blend:
        return ("no adapter",)
    if len(blend) == 1:
        return blend[0][0], f"rank {ranks[blend[0][0]]}, weight {blend[0][1]:g}"
    return "blend of " + ("two" if len(blend) == 2 else "three"), blend_text(blend)
