"""Servers in processes of their own, for what cannot be done to one in this process: signals, a disk of its own.

Takes a store's folder and options of `loramux serve`; gives a running server. They are forked from a process that has
imported what a server needs, so that one is there in a second.
"""

import asyncio
import ctypes
import multiprocessing
import os
import re
import signal
import sys
import urllib.request
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from loramux_client import AsyncClient
from loramux_client.cli import main
from loramux_client.errors import Unavailable

READY = re.compile(r"loramux ready grpc=(\S+) http=(\S+) base=(\S+)\n")
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["loramux_client.cli", "loramux_server.cli", "loramux_server.app"])
_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000  # linux/sched.h
_NO_DISK = 77
_SAMPLE = re.compile(r"^(\w+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)


class NoOwnDisk(Exception):
    """The machine lets ordinary processes mount nothing."""


@dataclass
class Serving:
    """A server process and its doors."""

    process: BaseProcess
    pid: int
    target: str
    http: str
    client: AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        self.client = AsyncClient(self.target, timeout=60, retries=0)

    @property
    def port(self) -> int:
        return int(self.target.rpartition(":")[2])

    def metrics(self) -> dict[str, float]:
        """All samples, by name and labels as they are exposed."""
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=10) as answer:
            return {name: float(value) for name, value in _SAMPLE.findall(answer.read().decode())}

    def held(self) -> dict[str, float]:
        """Jobs, their images, and calls that have not ended."""
        found = self.metrics()
        begun, ended = (
            sum(value for name, value in found.items() if name.startswith(f"grpc_server_{what}_total"))
            for what in ("started", "handled")
        )
        names = ("requests_in_flight", "images_waiting", "images_running", "uploads_in_progress")
        return {"calls": begun - ended, **{name: found[f"loramux_{name}"] for name in names}}

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def ended(self) -> int:
        """Its exit status, negative where a signal ended it."""
        await self.client.close()
        await asyncio.to_thread(self.process.join, 90)
        assert self.process.exitcode is not None, "still running"
        return self.process.exitcode

    async def stop(self) -> int:
        self.send(signal.SIGTERM)
        return await self.ended()


async def start(store: Path, *options: object, port: int = 0, own_disk: int = 0) -> Serving:
    """own_disk: bytes of a file system over the store's folder, which goes with the process. Raises NoOwnDisk."""
    said = {"--store": store, "--port": port, "--metrics-port": 0, "--device": "cpu", "--threads": 1}
    arguments = ["serve", *(str(each) for pair in said.items() for each in pair), *map(str, options)]
    hears, tells = _FORKS.Pipe(duplex=False)
    process = _FORKS.Process(target=_serve, args=(arguments, tells, store, own_disk), daemon=True)
    await asyncio.to_thread(process.start)
    tells.close()
    with os.fdopen(os.dup(hears.fileno())) as output:
        found = READY.match(await asyncio.to_thread(output.readline))
    hears.close()
    if not found:
        await asyncio.to_thread(process.join, 60)
        if process.exitcode == _NO_DISK:
            raise NoOwnDisk
    assert found, f"no ready line, ended with {process.exitcode}"
    serving = Serving(process, process.pid or 0, found[1], found[2])
    await _heard(serving.client)
    return serving


async def _heard(client: AsyncClient) -> None:
    """Clients of the server before, at the same address, have this process believe for a while that nobody is there."""
    async with asyncio.timeout(60):
        while True:
            try:
                await client.health()
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                return


def _serve(arguments: list[str], tells: Connection, store: Path, own_disk: int) -> None:
    """In the process itself."""
    os.dup2(tells.fileno(), 1)
    tells.close()
    if own_disk:
        store.mkdir(parents=True, exist_ok=True)
        try:
            _mount(store, own_disk)
        except OSError:
            sys.exit(_NO_DISK)
    sys.exit(main(arguments))


def _mount(folder: Path, size: int) -> None:
    """An empty file system of so many bytes over a folder, seen by this process alone."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()

    def checked(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), "no file system of one's own here")

    checked(libc.unshare(_NEW_USER | _NEW_MOUNTS))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        Path(f"/proc/self/{name}").write_text(text)
    checked(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()))
