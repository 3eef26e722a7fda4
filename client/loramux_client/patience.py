"""How long a transfer that breaks is taken up again.

Takes: what broke it and how far it had come. Gives: a pause, or the error, when it has been tried often
enough. Does not know what is transferred.
"""

from __future__ import annotations

import threading

from loramux_client.errors import Cancelled, LoraMuxClientError, Unavailable

RETRIES = 8
"""In a row without a byte of progress: about 40 seconds, in which a server with a small base restarts."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds
_PASSING = {"UPLOAD_BUSY", "UPLOAD_STALLED", "WRONG_OFFSET"}
"""Reasons of an upload's refusal that asking how far it came may settle."""


class Patience:
    """Counts failures in a row; progress starts the count anew. closed: set when nobody waits any more."""

    def __init__(self, retries: int, closed: threading.Event) -> None:
        self._retries = retries
        self._closed = closed
        self._failures = 0
        self._reached = 0

    def wait(self, error: LoraMuxClientError, reached: int) -> None:
        """Pauses before the next try; raises the error where there should be none.

        reached: bytes that have arrived so far.
        """
        if reached > self._reached:
            self._reached, self._failures = reached, 0
        if self._failures >= self._retries or not _passes(error):
            raise error
        pause = min(_FIRST_PAUSE * 2**self._failures, _LONGEST_PAUSE)
        self._failures += 1
        if self._closed.wait(max(pause, error.retry_after or 0.0)):
            raise Cancelled("the client was closed") from error


def _passes(error: LoraMuxClientError) -> bool:
    return isinstance(error, Unavailable) or error.reason in _PASSING
