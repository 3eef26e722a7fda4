"""Nothing of a fault is left: no rows, no tasks, no files, no memory, and the server draws.

Takes a server, before the fault; says after it what is still there. Knows no faults.
"""

import asyncio
import ctypes
import gc
import os
import time
from pathlib import Path
from typing import Protocol

from loramux_client import AsyncClient

GROWTH = 4 << 20
"""Bytes of resident memory that a fault may leave."""


class Observed(Protocol):
    """A server in this process or in one of its own. held: counts of what it holds."""

    pid: int
    client: AsyncClient

    def held(self) -> dict[str, float]: ...


class Before:
    """What a server holds while nobody asks for anything."""

    def __init__(self, server: Observed) -> None:
        self._server, self._held = server, {**server.held(), "files": files(server.pid)}
        self._memory = resident(server.pid)

    async def is_again(self) -> None:
        begun = time.monotonic()
        while left := self._left():
            assert time.monotonic() - begun < 30, f"still there: {left}"
            await asyncio.sleep(0.05)
        assert (await self._server.client.generate("a red apple", steps=1)).images
        while (grown := resident(self._server.pid) - self._memory) > GROWTH:
            assert time.monotonic() - begun < 30, f"{grown} bytes"
            await asyncio.sleep(0.5)

    def _left(self) -> dict[str, float]:
        held = {**self._server.held(), "files": files(self._server.pid)}
        return {what: held[what] for what in held if held[what] > self._held[what]}


async def warm(client: AsyncClient, *adapters: str) -> None:
    """Has whatever is made once be made, as the connections to the catalog, which are as many as were once needed."""
    blend = {name: 0.5 for name in adapters}
    for _ in range(3):
        drawing = (client.generate("a red apple", steps=2, adapters=blend) for _ in range(5))
        plain = (client.generate("a dog", steps=2) for _ in range(5))
        await asyncio.gather(*drawing, *plain, *(client.get_adapter("ink") for _ in range(40)))


def files(pid: int) -> int:
    """Descriptors."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident(pid: int) -> int:
    """Bytes of memory; in this process, which has run other tests too, without what is free and not yet given back."""
    if pid == os.getpid():
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
