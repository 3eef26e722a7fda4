"""Who makes a call, as far as that can be told without authentication.

Takes a call's context; gives a text for the audit log: what the caller says under `loramux-who` in the call's metadata
(percent-encoded, for headers are ASCII), and the address it comes from. It verifies nothing.
"""

from typing import Any, Protocol
from urllib.parse import unquote

HEADER = "loramux-who"
_MAX_NAME = 128


class Call(Protocol):
    """What is asked of a context."""

    def invocation_metadata(self) -> Any:
        """Pairs of keys and values; None for none."""
        ...

    def peer(self) -> str:
        """Where the call comes from, such as ipv4:10.0.0.7:55123."""
        ...


def caller(context: Call) -> str:
    """`name from address`, or the address alone."""
    said = next((value for key, value in context.invocation_metadata() or () if key == HEADER), "")
    name = " ".join("".join(c if c.isprintable() else " " for c in unquote(str(said))).split())[:_MAX_NAME]
    address = _address(context.peer())
    return f"{name} from {address}" if name else address


def _address(peer: str) -> str:
    """Without the kind and the port, which is another one for every connection."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer
    return rest.rpartition(":")[0].replace("%5B", "[").replace("%5D", "]")
