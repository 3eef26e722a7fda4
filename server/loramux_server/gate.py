"""The gate that every call passes: who is it, may it, and has it calls left.

Takes what comes with a call; gives its caller or refuses. It knows no messages.
"""

from collections.abc import Iterable

from loramux_server.access import OPEN, Access, Holder
from loramux_server.callers import Caller, caller_of
from loramux_server.limits import Meters


class Gate:
    """access: None lets everybody in."""

    def __init__(self, access: Access | None = None) -> None:
        self._access = access
        self._meters = Meters()

    def exchange(self, access: Access) -> None:
        """From the next call on. What holders have used stays counted."""
        self._access = access

    def enter(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]], peer: str, certified: str | None = None
    ) -> Caller:
        """certified: the common name of the client's certificate, where it has one.

        Raises:
            Unknown, Forbidden: where the call's token is not good for it.
            OverLimit: where its holder made too many calls.
        """
        pairs = tuple(metadata)
        if method.startswith(OPEN) or self._access is None:
            return caller_of(pairs, peer, certified)
        holder: Holder = self._access.admit(method, pairs)
        meter = self._meters.of(holder)
        meter.call()
        return caller_of(pairs, peer, holder.name, meter)
