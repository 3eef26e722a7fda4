"""Calls that are being answered, so that the end of the server is told to them and cuts nobody off without a word.

Takes the tasks that answer; ends them with Draining. It knows no methods, no messages and no gRPC.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from loramux_server.errors import Draining

_ANSWERED_S = 1.0  # for statuses to be sent; what waits for the disk is not waited for longer


class OpenCalls:
    """Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._open = set[asyncio.Task[object]]()
        self._ended = set[asyncio.Task[object]]()

    @contextmanager
    def answering(self) -> Generator[None]:
        """While the current task answers a call.

        Raises:
            Draining: in the place of the task's cancellation, where `end` asked for that.
        """
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._ended or task.uncancel() > 0:  # its client cancelled it, too
                raise
            raise Draining("the server stopped before the call had ended") from None
        finally:
            self._open.discard(task)

    async def end(self, seconds: float) -> None:
        """Gives the calls that are open so long; those that are still open then end with Draining."""
        left = set(self._open)
        if left:
            _, left = await asyncio.wait(left, timeout=seconds)
        self._ended = left & self._open
        for task in self._ended:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_ANSWERED_S)
