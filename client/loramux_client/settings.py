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
    """server: address where a command names none."""

    server: str = DEFAULT_SERVER


def read_settings(environment: Mapping[str, str] = os.environ) -> ClientSettings:
    """LORAMUX_SERVER, where it is set to something."""
    return ClientSettings(server=environment.get("LORAMUX_SERVER") or DEFAULT_SERVER)
