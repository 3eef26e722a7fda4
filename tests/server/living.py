"""A whole server in this process, on the built-in base."""

import asyncio
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from loramux_client import AsyncClient
from loramux_server.app import App, Ready
from loramux_server.settings import Settings


class Living:
    """A server that runs until it is told to stop."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        values = {"store": folder, "device": "cpu", "port": 0, "metrics_port": 0, "threads": 1, **settings}
        self.app, self.stop = App(Settings(**values)), asyncio.Event()
        self._ready = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        self.ended = asyncio.create_task(self.app.run(self._ready.set_result, self.stop))
        done, _ = await asyncio.wait([self._ready, self.ended], return_when=asyncio.FIRST_COMPLETED)
        assert self._ready in done, self.ended.exception()
        self.at: Ready = self._ready.result()
        self.target = f"127.0.0.1:{self.at.grpc_port}"
        self.client = AsyncClient(self.target, timeout=60)

    async def close(self) -> None:
        self.stop.set()
        await self.client.close()
        await self.ended

    async def http(self, path: str) -> int:
        """Status of an answer."""

        def ask() -> int:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.at.http_port}{path}", timeout=10) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as refused:
                return refused.code

        return await asyncio.to_thread(ask)

    def sample(self, name: str, **labels: str) -> float:
        """Of a metric; 0 where there is none yet."""
        return self.app.metrics.registry.get_sample_value(name, labels) or 0.0
