"""A server in a thread of this process, on ports of its own.

Takes a store's folder and settings; gives its address for as long as it serves.
"""

import asyncio
import threading
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from loramux_server.app import App, Ready
from loramux_server.settings import Settings


@contextmanager
def served(store: Path, **values: Any) -> Generator[str]:
    """HOST:PORT."""
    with ready(store, **values) as at:
        yield f"{at.host}:{at.grpc_port}"


@contextmanager
def ready(store: Path, **values: Any) -> Generator[Ready]:
    """Where it listens."""
    threads = torch.get_num_threads()
    asked = {"store": store, "device": "cpu", "threads": 1, "pool_bytes": 64 << 20, "port": 0, "metrics_port": 0}
    app, stop, listening = App(Settings.model_validate(asked | values)), asyncio.Event(), Future[Ready]()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(app.run(listening.set_result, stop)))
    thread.start()
    try:
        yield listening.result(60)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        loop.close()
        torch.set_num_threads(threads)
