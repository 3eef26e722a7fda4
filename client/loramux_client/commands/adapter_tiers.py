"""`loramux adapters preload`, `pin` and `unpin`: which adapters a server has at hand.

Takes: references and tiers. Gives: what became of it. Does not know how the server is asked.
"""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from loramux_client import terminal
from loramux_client.commands.adapter_changes import adapters
from loramux_client.commands.server import Server, connect

Reference = Annotated[str, Parameter(help="An adapter, as NAME, NAME@VERSION or NAME@ALIAS.")]
Tier = Annotated[Literal["host", "device"], Parameter(help="The server's memory, or its device.")]


@adapters.command
def preload(adapter: Reference, /, *, tier: Tier = "device", server: Server = None) -> None:
    """Have an adapter loaded before anybody asks for a picture. It stays until others need the room."""
    with connect(server) as client:
        loaded = client.preload_adapter(adapter, tier)
    terminal.say(f"{loaded.version.adapter}@{loaded.version.number} is in the tier {loaded.tier}")


@adapters.command
def pin(adapter: Reference, /, *, tier: Tier = "device", server: Server = None) -> None:
    """Keep an adapter loaded, also when NAME or NAME@ALIAS comes to mean another version, and after a restart."""
    with connect(server) as client:
        client.pin_adapter(adapter, tier)
    terminal.say(f"pinned {adapter} to the tier {tier}")


@adapters.command
def unpin(
    adapter: Annotated[str, Parameter(help="As it was pinned; `adapters list` shows it.")],
    /,
    *,
    server: Server = None,
) -> None:
    """Keep an adapter loaded no longer. It stays until others need the room."""
    with connect(server) as client:
        client.unpin_adapter(adapter)
    terminal.say(f"unpinned {adapter}")
