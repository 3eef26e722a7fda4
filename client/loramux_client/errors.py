"""The errors of a call.

Takes: what a server (or the channel) said about a call that failed. Gives: one exception of one
tree, with the machine-readable parts as attributes. Does not know gRPC: status.py builds these.

    LoraMuxClientError
    ├── InvalidArgument       a field is wrong; see violations
    ├── NotFound              no such adapter or version
    ├── AlreadyExists
    ├── FailedPrecondition    for example an adapter made for another base
    ├── Aborted               something changed meanwhile
    ├── OutOfRange
    ├── ResourceExhausted     queue or quota full; see retry_after
    ├── PermissionDenied      who asks may not, or is not known
    ├── Unavailable           no server there, or it is going away; see retry_after
    ├── DataLoss              bytes do not match their digest
    ├── DeadlineExceeded      not done within the timeout
    ├── Cancelled             the call was cancelled
    ├── Unimplemented         the server is older than this client
    └── Internal              a fault of the server
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """One field at fault: its path in the request, and what is wrong with it."""

    field: str
    description: str


class LoraMuxClientError(Exception):
    """Root of the tree.

    reason: UPPER_SNAKE word for programs, empty where none was given. metadata: its details.
    violations: fields at fault. retry_after: seconds after which trying again makes sense.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after = retry_after

    def lines(self) -> list[str]:
        """What to show a person: one line, then one for each violation that the first does not tell."""
        again = "" if self.retry_after is None else f" (try again in {self.retry_after:g} s)"
        more = [v for v in self.violations if not (v.field in self.message and v.description in self.message)]
        said = [_one_line(f"  {v.field}: {v.description}") for v in more]
        return [_one_line(self.message or type(self).__name__) + again, *("  " + text for text in said)]


def _one_line(text: str) -> str:
    return " ".join(text.split())


class InvalidArgument(LoraMuxClientError):
    """A field is wrong."""


class NotFound(LoraMuxClientError):
    """No such adapter or version."""


class AlreadyExists(LoraMuxClientError):
    """The name is taken."""


class FailedPrecondition(LoraMuxClientError):
    """The request cannot work in the present state, for example an adapter for another base."""


class Aborted(LoraMuxClientError):
    """Something changed meanwhile."""


class OutOfRange(LoraMuxClientError):
    """Past the end, or over a limit."""


class ResourceExhausted(LoraMuxClientError):
    """A queue or quota is full."""


class PermissionDenied(LoraMuxClientError):
    """Who asks may not, or is not known."""


class Unavailable(LoraMuxClientError):
    """No server there, or it is going away."""


class DataLoss(LoraMuxClientError):
    """Bytes do not match their digest."""


class DeadlineExceeded(LoraMuxClientError):
    """Not done within the timeout."""


class Cancelled(LoraMuxClientError):
    """The call was cancelled."""


class Unimplemented(LoraMuxClientError):
    """The server does not know this call."""


class Internal(LoraMuxClientError):
    """A fault of the server."""
