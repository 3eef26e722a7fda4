"""Requests that come again under the same id are drawn once.

Takes a caller, an id, the digest of what is asked and how to draw it; gives the answer: of the drawing that is under
way, of one that was kept, or of a new one. It knows no messages, no jobs and no gRPC, and belongs to the event loop's
thread.

A drawing belongs to all who wait for it, and is given up when the last of them leaves. Answers are kept, failures are
not: whoever comes after one has it drawn anew.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from loramux_server.errors import InvalidRequest, Violation
from loramux_server.metrics import Metrics

Answer = TypeVar("Answer")

SECONDS = 600.0
"""That an answer is kept after it was last asked for."""
BYTES = 64 << 20
"""Of answers that are kept: those left longest ago go first."""
_OVERHEAD = 1024  # bytes of an entry beside its answer, so that their number has a bound too


@dataclass(frozen=True, slots=True)
class Key:
    """Whose request, by verified name where there is one, and the id that it came with."""

    caller: str | None
    request_id: str


@dataclass(slots=True)
class _Drawing(Generic[Answer]):
    digest: bytes
    task: asyncio.Task[Answer]
    waiting: int = 0


@dataclass(slots=True)
class _Kept(Generic[Answer]):
    """size: bytes; until: seconds on the clock."""

    digest: bytes
    answer: Answer
    size: int
    until: float


class Repeats(Generic[Answer]):
    """size: bytes of an answer."""

    def __init__(
        self, size: Callable[[Answer], int], metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._size, self._metrics, self._clock = size, metrics, clock
        self._drawings: dict[Key, _Drawing[Answer]] = {}
        self._kept = OrderedDict[Key, _Kept[Answer]]()
        self._bytes = 0

    async def answer(self, key: Key, digest: bytes, draw: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """What `draw` gives or raises, for everybody who asked the same under the key.

        Raises:
            InvalidRequest: something else was asked under it.
        """
        self._forget_old()
        if (kept := self._kept.get(key)) is not None:
            _refuse_other(kept.digest, digest)
            self._metrics.repeated.labels("kept").inc()
            self._kept.move_to_end(key)
            kept.until = self._clock() + SECONDS
            return kept.answer
        if (drawing := self._drawings.get(key)) is not None:
            _refuse_other(drawing.digest, digest)
            self._metrics.repeated.labels("joined").inc()
        else:
            task = asyncio.create_task(self._draw(key, digest, draw))
            task.add_done_callback(_looked_at)
            drawing = self._drawings[key] = _Drawing(digest, task)
        return await self._wait(key, drawing)

    async def _wait(self, key: Key, drawing: _Drawing[Answer]) -> Answer:
        drawing.waiting += 1
        try:
            await asyncio.wait([drawing.task])  # unlike the task itself, it may be cancelled
            return drawing.task.result()
        finally:
            drawing.waiting -= 1
            if drawing.waiting == 0 and not drawing.task.done():
                del self._drawings[key]  # who comes now finds nothing that is about to end
                drawing.task.cancel()
                await asyncio.wait([drawing.task])

    async def _draw(self, key: Key, digest: bytes, draw: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """Leaves nothing between its end and what the next caller finds."""
        answer = None
        try:
            answer = await draw()
            return answer
        finally:
            mine = self._drawings.get(key)
            if mine is not None and mine.task is asyncio.current_task():  # else it was given up
                del self._drawings[key]
                if answer is not None:
                    self._keep(key, digest, answer)

    def _keep(self, key: Key, digest: bytes, answer: Answer) -> None:
        size = self._size(answer) + _OVERHEAD
        if size > BYTES:
            return
        self._kept[key] = _Kept(digest, answer, size, self._clock() + SECONDS)
        self._bytes += size
        while self._bytes > BYTES:
            self._forget()

    def _forget_old(self) -> None:
        """Each was asked for later than those before it."""
        now = self._clock()
        while self._kept and next(iter(self._kept.values())).until <= now:
            self._forget()

    def _forget(self) -> None:
        _, kept = self._kept.popitem(last=False)
        self._bytes -= kept.size


def _refuse_other(known: bytes, asked: bytes) -> None:
    if known != asked:
        raise InvalidRequest((Violation("request_id", "stands for another request, expected a new one for each"),))


def _looked_at(ended: asyncio.Task[Any]) -> None:
    """A failure that comes as the last who waited leaves is told to nobody, and no fault."""
    if not ended.cancelled():
        ended.exception()
