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
    """Of a request that is refused until it is its turn. seconds: for all tries and waits together, None for no
    limit."""

    def __init__(self, retries: int, seconds: float | None) -> None:
        self._left = retries
        self._until = None if seconds is None else time.monotonic() + seconds

    @property
    def seconds_left(self) -> float | None:
        """For the next try."""
        return None if self._until is None else self._until - time.monotonic()

    def pause(self, error: LoraMuxClientError) -> float:
        """Seconds before the next try, as long as the server says or a little longer; raises the error where it says
        nothing, where it was tried often enough, and where there would be no time left."""
        if error.retry_after is None or self._left <= 0:
            raise error
        pause, left = _spread(error.retry_after), self.seconds_left
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
