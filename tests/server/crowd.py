"""Clients that ask for pictures until they are told to stop, whatever becomes of the server; what they were told.

Takes an address; gives pictures and refusals. Knows no server.
"""

import asyncio
import io
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from loramux_client import AsyncClient
from loramux_client.errors import Unavailable

ASKED: Mapping[str, Any] = {"steps": 2, "seed": 7}
_PAUSE = 0.05  # seconds between one picture and the next
PROMPT = "a red apple"


@dataclass
class Heard:
    """By blend: pictures. refusals: of whatever blend, in their order, each before which picture came."""

    pictures: list[tuple[str, np.ndarray]] = field(default_factory=list)
    refusals: list[Unavailable] = field(default_factory=list)


async def drawn(client: AsyncClient, adapter: str, **asked: Any) -> np.ndarray:
    """The picture, [H, W, 3]; adapter: empty for none."""
    blend = {adapter: 1.0} if adapter else {}
    made = await client.generate(PROMPT, adapters=blend, **{**ASKED, **asked})
    return pixels(made.images[0].data)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    """As far as the company that a picture is drawn in may matter (docs/isolation.md)."""
    return int(np.abs(one - other).max()) <= 1


async def ask(target: str, adapters: list[str], stop: asyncio.Event, heard: Heard) -> None:
    async with AsyncClient(target, timeout=60, retries=0) as client:
        while not stop.is_set():
            for adapter in adapters:
                try:
                    heard.pictures.append((adapter, await drawn(client, adapter)))
                    await asyncio.sleep(_PAUSE)
                except Unavailable as refusal:
                    heard.refusals.append(refusal)
                    await asyncio.sleep(0.05)


@asynccontextmanager
async def crowd(target: str, adapters: list[str], count: int) -> AsyncGenerator[Heard]:
    """So many clients, for as long as the block runs; each asks for all adapters in turn."""
    stop, heard = asyncio.Event(), Heard()
    asking = [asyncio.create_task(ask(target, adapters, stop, heard)) for _ in range(count)]
    try:
        yield heard
    finally:
        stop.set()
        await asyncio.gather(*asking)
