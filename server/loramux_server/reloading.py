"""Tokens and certificates are read again as their files change, without a restart.

Takes files and what to do with them; tells when they changed. A file that is wrong changes nothing: what was read last
goes on, and the log and a metric say so. It knows neither tokens nor certificates.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from loramux_server.errors import BadSetting
from loramux_server.metrics import Metrics

PERIOD_S = 2.0
_log = structlog.stdlib.get_logger(__name__)


class Watched:
    """Files that are read together."""

    def __init__(self, what: str, files: Sequence[Path], read: Callable[[], None]) -> None:
        self.what, self._files, self._read = what, files, read
        self._seen = self._state()

    def look(self) -> bool:
        """Reads them if they changed, and says whether they did.

        Raises:
            BadSetting: where they are wrong.
        """
        state = self._state()
        if state == self._seen:
            return False
        self._seen = state
        self._read()
        return True

    def _state(self) -> list[tuple[int, int, int] | None]:
        return [_state(file) for file in self._files]


async def keep_current(
    watched: Sequence[Watched], metrics: Metrics, stop: asyncio.Event, period_s: float = PERIOD_S
) -> None:
    """Until `stop`, looks at the files every so often; on a thread of its own, since a token that is gone must be
    refused although all others wait for a disk."""
    loop, threads = asyncio.get_running_loop(), ThreadPoolExecutor(1, thread_name_prefix="reloading")
    while watched and not stop.is_set():
        for each in watched:
            try:
                changed = await loop.run_in_executor(threads, each.look)
            except BadSetting as error:
                metrics.reloads.labels(each.what, "refused").inc()
                _log.error("changed files are wrong, what was read before goes on", what=each.what, error=str(error))
            else:
                if changed:
                    metrics.reloads.labels(each.what, "done").inc()
                    _log.warning("read again", what=each.what)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), timeout=period_s)
    threads.shutdown()


def _state(file: Path) -> tuple[int, int, int] | None:
    """What changes with the file, also where another one is put in its place."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
