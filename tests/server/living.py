"""The whole server in this process, on the built-in base."""

import asyncio
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from loramux_client import AsyncClient
from loramux_client.server_info import Health
from loramux_server.app import App, Ready
from loramux_server.settings import Settings
from loramux_server.tracing import Tracing

PICTURES, SHELF = "loramux.v1.GenerationService", "loramux.v1.AdapterService"


class Living:
    """A server that runs until it is told to stop."""

    pid = os.getpid()

    def __init__(self, folder: Path, tracing: Tracing | None = None, **settings: Any) -> None:
        values = {"store": folder, "device": "cpu", "port": 0, "metrics_port": 0, "threads": 1, **settings}
        self.app, self.stop = App(Settings(**values), tracing=tracing), asyncio.Event()
        self._ready = asyncio.get_running_loop().create_future()

    async def start(self, **options: Any) -> None:
        """options: of the client, which is told of refusals at once."""
        self.ended = asyncio.create_task(self.app.run(self._ready.set_result, self.stop))
        done, _ = await asyncio.wait([self._ready, self.ended], return_when=asyncio.FIRST_COMPLETED)
        assert self._ready in done, self.ended.exception()
        self.at: Ready = self._ready.result()
        self.target = f"127.0.0.1:{self.at.grpc_port}"
        self.client = AsyncClient(f"localhost:{self.at.grpc_port}", timeout=60, **{"retries": 0, **options})

    async def http(self, path: str) -> int:
        return (await self.get(path))[0]

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Status and text."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.at.http_port}{path}", headers=headers)

        def ask() -> tuple[int, str]:
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return int(answer.status), answer.read().decode()
            except urllib.error.HTTPError as refused:
                return refused.code, ""

        return await asyncio.to_thread(ask)

    async def until(self, health_of_pictures: Health) -> None:
        async with asyncio.timeout(30):
            while await self.client.health(PICTURES) is not health_of_pictures:
                await asyncio.sleep(0.05)

    async def shut(self) -> None:
        self.stop.set()
        await self.client.close()
        await self.ended

    def held(self) -> dict[str, float]:
        """Jobs, their images, uses of adapters, and the loop's tasks, but for those in which others of the server's own
        wait for their next turn: they come and go once a second."""
        runner, device = self.app.runner, self.app.engine.adapters.device
        return {
            "jobs": len(runner._jobs),
            "images": len(runner._scheduler._requests),
            "users": sum(resident.users for resident in device.residents.values()),
            "tasks": sum(
                getattr(task.get_coro(), "__qualname__", "") != "Event.wait"
                for task in asyncio.all_tasks(self._ready.get_loop())
            ),
        }

    def sample(self, name: str, **labels: str) -> float:
        """Of a metric; 0 where there is none yet."""
        return self.app.metrics.registry.get_sample_value(name, labels) or 0.0
