"""The gate that every call passes: who is it, may it, and has it calls left.

Takes what is known of a call before its first message; lets it in or refuses. It knows no messages.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from loramux_server.access import OPEN, Access
from loramux_server.callers import Caller, caller_of
from loramux_server.limits import Meter, Meters


@dataclass(frozen=True, slots=True)
class Entry:
    """A call that was let in. holder: of its token, where it needed one; meter: what the holder uses."""

    metadata: tuple[tuple[str, str | bytes], ...]
    holder: str | None = None
    meter: Meter | None = None

    def caller(self, peer: str, certified: str | None = None) -> Caller:
        """Who calls. certified: the common name of the client's certificate, where it has one."""
        return caller_of(self.metadata, peer, self.holder or certified, self.meter)


class Gate:
    """access: None lets everybody in."""

    def __init__(self, access: Access | None = None) -> None:
        self._access = access
        self._meters = Meters()

    def exchange(self, access: Access) -> None:
        """From the next call on. What holders have used stays counted."""
        self._access = access

    def enter(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Entry:
        """Once for each call.

        Raises:
            Unknown, Forbidden: where the call's token is not good for it.
            OverLimit: where its holder made too many calls.
        """
        pairs = tuple(metadata)
        if method.startswith(OPEN) or self._access is None:
            return Entry(pairs)
        holder = self._access.admit(method, pairs)
        meter = self._meters.of(holder)
        meter.call()
        return Entry(pairs, holder.name, meter)
