"""How long what failed is tried again.

Takes: what failed and, of a transfer, how far it had come. Gives: a pause, or the error, when it has been tried often
enough or should not be. Does not know what is transferred or asked for.
"""

from __future__ import annotations

import random
import threading
import time

from loramux_client.errors import Cancelled, LoraMuxClientError, ResourceExhausted, Unavailable

RETRIES = 8
"""In a row without a byte of progress: about 40 seconds, in which a server with a small base restarts."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds
_BREAKS = (0.2, 0.4, 0.8)  # seconds before a request is made again whose connection broke or could not be made
_SPREAD = 0.25  # of a wait that is told: those who were told the same do not come back at once
_PASSING = {"UPLOAD_BUSY", "UPLOAD_STALLED", "WRONG_OFFSET"}
"""Reasons of an upload's refusal that asking how far it came may settle."""


class Patience:
    """Of a transfer: counts failures in a row; progress starts the count anew. closed: set when nobody waits any more;
    longest: seconds above which a wait that is told is not waited for, None for no limit."""

    def __init__(self, retries: int, closed: threading.Event, longest: float | None = None) -> None:
        self._retries = retries
        self._closed = closed
        self._longest = longest
        self._failures = 0
        self._reached = 0

    def wait(self, error: LoraMuxClientError, reached: int) -> None:
        """Pauses before the next try; raises the error where there should be none.

        reached: bytes that have arrived so far.
        """
        if reached > self._reached:
            self._reached, self._failures = reached, 0
        told = _spread(error.retry_after or 0.0)
        too_long = self._longest is not None and told > self._longest
        if self._failures >= self._retries or too_long or not _passes(error):
            raise error
        pause = min(_FIRST_PAUSE * 2**self._failures, _LONGEST_PAUSE)
        self._failures += 1
        if self._closed.wait(max(pause, told)):
            raise closed_while_waiting() from error


class Turn:
    """Of a request that is refused until it is its turn. seconds: for all tries and waits together, None for no limit;
    repeatable: the server draws it once however often it comes, so that it may also come again after a break."""

    def __init__(self, retries: int, seconds: float | None, *, repeatable: bool = False) -> None:
        self._left = retries
        self._breaks = iter(_BREAKS if repeatable else ())
        self._until = None if seconds is None else time.monotonic() + seconds

    @property
    def seconds_left(self) -> float | None:
        """For the next try."""
        return None if self._until is None else self._until - time.monotonic()

    def pause(self, error: LoraMuxClientError) -> float:
        """Seconds before the next try: as long as the server says or a little longer, after a break not long. Raises
        the error where it is another one, where it was tried often enough, and where there would be no time left."""
        told, left = error.retry_after, self.seconds_left
        if told is None and isinstance(error, Unavailable):
            told = next(self._breaks, None)
        if told is None or self._left <= 0:
            raise error
        pause = _spread(told)
        if left is not None and pause >= left:
            raise error
        self._left -= 1
        return pause


def closed_while_waiting() -> Cancelled:
    """What a wait ends with where its client is closed."""
    return Cancelled("the client was closed")


def _spread(told: float) -> float:
    return told * random.uniform(1.0, 1.0 + _SPREAD)


def _passes(error: LoraMuxClientError) -> bool:
    told = isinstance(error, ResourceExhausted) and error.retry_after is not None
    return told or isinstance(error, Unavailable) or error.reason in _PASSING
