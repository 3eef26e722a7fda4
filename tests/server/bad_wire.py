"""A wire between client and server that misbehaves: a TCP relay that splits, slows, cuts or swallows what passes."""

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends RST


@dataclass
class Wire:
    """piece: most bytes passed on at once; pause: seconds after each piece; dead: nothing passes any more, and nobody
    is told."""

    piece: int = 1 << 16
    pause: float = 0.0
    dead: bool = False

    def __post_init__(self) -> None:
        self.passed = 0
        self._writers: set[asyncio.StreamWriter] = set()

    def reset(self) -> None:
        """Cuts every connection, as by a firewall."""
        for writer in self._writers:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction of one connection."""
        with suppress(OSError, asyncio.IncompleteReadError):
            while data := await reader.read(self.piece):
                await self._alive()
                self.passed += len(data)
                writer.write(data)
                await writer.drain()
                if self.pause:
                    await asyncio.sleep(self.pause)
        await self._alive()  # an end does not pass either
        with suppress(OSError, RuntimeError):
            writer.close()

    async def _alive(self) -> None:
        while self.dead:
            await asyncio.sleep(0.01)

    @asynccontextmanager
    async def to(self, port: int) -> AsyncGenerator[str]:
        """Listens; gives the address that leads to the port."""
        tasks = set[asyncio.Task[None]]()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection("127.0.0.1", port)
            self._writers.add(back)
            await asyncio.gather(self.relay(reader, back), self.relay(there, writer))

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.add(writer)
            tasks.add(asyncio.ensure_future(connected(reader, writer)))

        server = await asyncio.start_server(accepted, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            self.dead = False
            for listening in server.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
            for _ in range(3):
                await asyncio.sleep(0)  # who knocked comes in: asyncio loses the sockets of those when a server closes
            server.close()
            for writer in self._writers:
                writer.transport.abort()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
