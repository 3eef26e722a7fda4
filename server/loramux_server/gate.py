"""The gate that every call passes: who is it, may it, is there time for it yet, and has it calls left.

Takes what is known of a call before its first message; lets it in or refuses. It knows no messages.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from loramux_server.access import OPEN, Access
from loramux_server.callers import Caller, caller_of
from loramux_server.errors import Draining
from loramux_server.limits import Meter, Meters

_READS = ("Get", "List", "Download")
"""How the names of methods begin that change nothing and take no turn of the engine's."""


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
        self._draining = False

    def drain(self) -> None:
        """From now on nothing new is let in but what only reads."""
        self._draining = True

    def exchange(self, access: Access) -> None:
        """From the next call on. What holders have used stays counted."""
        self._access = access

    def enter(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Entry:
        """Once for each call.

        Raises:
            Unknown, Forbidden: where the call's token is not good for it.
            Draining: where the server is stopping.
            OverLimit: where its holder made too many calls.
        """
        pairs = tuple(metadata)
        if method.startswith(OPEN):
            return Entry(pairs)
        holder = None if self._access is None else self._access.admit(method, pairs)
        if self._draining and not method.rpartition("/")[2].startswith(_READS):
            raise Draining("the server is stopping and takes nothing new")
        if holder is None:
            return Entry(pairs)
        meter = self._meters.of(holder)
        meter.call()
        return Entry(pairs, holder.name, meter)
