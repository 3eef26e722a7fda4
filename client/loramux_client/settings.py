"""What the client takes from the environment: the one place that reads it.

Takes: the environment. Gives: one frozen value. Does not know who uses it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_SERVER = "127.0.0.1:50051"

VARIABLES = (
    "LORAMUX_SERVER",
    "LORAMUX_WHO",
    "LORAMUX_TOKEN",
    "LORAMUX_TLS",
    "LORAMUX_CA",
    "LORAMUX_CLIENT_CERT",
    "LORAMUX_CLIENT_KEY",
)
"""All that is read."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """server: address where a command names none. who: who is told to the server's audit log. token: who is proven.
    tls: whether the connection is encrypted; ca: certificates, PEM, of which one has signed the server's, None: those
    the machine trusts; client_cert, client_key: the client's own, PEM."""

    server: str = DEFAULT_SERVER
    who: str | None = None
    token: str | None = None
    tls: bool = False
    ca: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None


def read_settings(environment: Mapping[str, str] = os.environ) -> ClientSettings:
    """The variables, where they are set to something. LORAMUX_CA and LORAMUX_CLIENT_CERT mean TLS too."""
    server, who, token, tls, ca, cert, key = (environment.get(name) or None for name in VARIABLES)
    return ClientSettings(
        server=server or DEFAULT_SERVER,
        who=who,
        token=token,
        tls=bool(ca or cert) or (tls or "").lower() in ("1", "true", "yes", "on"),
        ca=_path(ca),
        client_cert=_path(cert),
        client_key=_path(key),
    )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
