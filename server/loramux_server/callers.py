"""Who makes a call.

Takes a call's metadata, its address and, where it is known, the holder's name; gives `Caller`, which goes along with
the call. It knows no RPC. What a caller says of itself under `loramux-who` (percent-encoded, for headers are ASCII) is
verified by nobody.
"""

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from urllib.parse import unquote

from loramux_server.limits import Meter

HEADER = "loramux-who"
_MAX_NAME = 128


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. holder: the verified name, of the token or the certificate, None where there is neither; said: what
    the caller says; meter: what the holder uses."""

    address: str
    holder: str | None = None
    said: str = ""
    meter: Meter | None = None

    @property
    def who(self) -> str:
        """For the audit log: the holder, else what the caller says, and the address."""
        if self.holder is None:
            return f"{self.said} from {self.address}" if self.said else self.address
        return f"{self.holder} ({self.said}) from {self.address}" if self.said else f"{self.holder} from {self.address}"


_CURRENT: ContextVar[Caller] = ContextVar("caller")


def current() -> Caller:
    """Who makes the call that is being answered."""
    return _CURRENT.get()


def answering(caller: Caller) -> None:
    """From here on the call of this caller is answered."""
    _CURRENT.set(caller)


def caller_of(
    metadata: Iterable[tuple[str, str | bytes]], peer: str, holder: str | None = None, meter: Meter | None = None
) -> Caller:
    """peer: as gRPC has it, such as ipv4:10.0.0.7:55123."""
    said = next((value for key, value in metadata if key == HEADER), "")
    name = " ".join("".join(c if c.isprintable() else " " for c in unquote(str(said))).split())[:_MAX_NAME]
    return Caller(_address(peer), holder, name, meter)


def _address(peer: str) -> str:
    """Without the kind and the port, which is another one for every connection."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer
    return rest.rpartition(":")[0].replace("%5B", "[").replace("%5D", "]")
