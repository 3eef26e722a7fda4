"""What the client takes from the environment: the one place that reads it.

Takes: the environment. Gives: one frozen value. Does not know who uses it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

DEFAULT_SERVER = "127.0.0.1:50051"


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """server: address where a command names none. who: who is told to the server's audit log."""

    server: str = DEFAULT_SERVER
    who: str | None = None


def read_settings(environment: Mapping[str, str] = os.environ) -> ClientSettings:
    """LORAMUX_SERVER and LORAMUX_WHO, where they are set to something."""
    return ClientSettings(
        server=environment.get("LORAMUX_SERVER") or DEFAULT_SERVER, who=environment.get("LORAMUX_WHO") or None
    )
