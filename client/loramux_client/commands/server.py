"""`loramux info` and `loramux healthcheck`, and the option that says which server.

Takes: the server's address. Gives: what it says. Does not know how it is asked.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any
from urllib.request import urlopen

from cyclopts import Parameter

from loramux_client import terminal
from loramux_client.channel import DEFAULT_TIMEOUT, tls_credentials
from loramux_client.client import Client
from loramux_client.errors import LoraMuxClientError
from loramux_client.patience import RETRIES
from loramux_client.server_info import Health
from loramux_client.settings import DEFAULT_SERVER, read_settings

HEALTH_TIMEOUT = 5.0

Server = Annotated[
    str | None,
    Parameter(
        name="--server",
        help=f"HOST:PORT of the server. Default: LORAMUX_SERVER, else {DEFAULT_SERVER}.",
    ),
]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")]


def connect(server: str | None, timeout: float | None = None, retries: int = RETRIES) -> Client:
    """A client of the server named, or of the default one."""
    settings = read_settings()
    credentials = tls_credentials(settings.ca, settings.client_cert, settings.client_key) if settings.tls else None
    return Client(
        server or settings.server,
        timeout=DEFAULT_TIMEOUT if timeout is None else timeout,
        retries=retries,
        credentials=credentials,
        who=settings.who,
        token=settings.token,
    )


def info(*, server: Server = None, json: Json = False) -> None:
    """Show what the server is and can do."""
    with connect(server) as client:
        found = client.server_info()
    if json:
        terminal.say_json(found)
        return
    facts: dict[str, Any] = {**asdict(found), "samplers": found.samplers}
    for group in ("limits", "defaults", "text_widths", "library_versions"):
        facts |= {f"{group}.{name}": value for name, value in facts.pop(group).items()}
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        terminal.say(f"{name:<30}{text}")


def healthcheck(*, server: Server = None, service: str = "", http: str | None = None) -> int:
    """Ask whether the server is serving: exit status 0 if it is, 1 if not.

    Parameters
    ----------
    service
        Full name of a gRPC service. Default: the whole server.
    http
        HOST:PORT of the server's HTTP side, which is asked instead: it wants neither certificate nor token.
    """
    if http is not None:
        return _ask_http(http)
    try:
        with connect(server, HEALTH_TIMEOUT) as client:
            health = client.health(service)
    except LoraMuxClientError as error:
        terminal.complain(f"not serving: {error.lines()[0]}")
        return 1
    terminal.say(health.name.lower().replace("_", " "))
    return 0 if health is Health.SERVING else 1


def _ask_http(address: str) -> int:
    try:
        with urlopen(f"http://{address}/readyz", timeout=HEALTH_TIMEOUT):
            terminal.say("serving")
            return 0
    except OSError as error:
        terminal.complain(f"not serving: {address} says {error}")
        return 1
