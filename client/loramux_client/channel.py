"""How a channel to a server is set up, sync or asyncio.

Takes: the target, a token, files of certificates. Gives: channel options, credentials and what goes with every
call. Does not know what is called.
"""

from __future__ import annotations

import json
from ipaddress import ip_address
from os import PathLike
from pathlib import Path
from urllib.parse import quote

import grpc

from loramux_client.errors import InvalidArgument
from loramux_client.rpcs import SAFE_TO_REPEAT

DEFAULT_TIMEOUT = 600.0
"""Seconds. Long enough for pictures on a CPU, short enough that nothing hangs for ever."""

MAX_RECEIVE_BYTES = 64 * 1024 * 1024
"""Sixteen 1024x1024 PNGs fit; gRPC's own 4 MiB would refuse them."""

SPREAD = "round_robin"
"""How calls are balanced that any server may answer: over all that the target names."""

STAY = "pick_first"
"""And those about adapters, of which every server has its own: all go to one server, as long as it is there. A channel
of each kind to the same address share a connection."""

# Only "nobody there" is tried again, and only where repeating does no harm.
_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.2s",
    "maxBackoff": "5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def service_config(balancing: str) -> str:
    """The gRPC service config, as JSON. balancing: SPREAD or STAY."""
    paths = [rpc.path.strip("/").split("/") for rpc in SAFE_TO_REPEAT]
    names = [{"service": service, "method": method} for service, method in paths]
    return json.dumps(
        {
            "loadBalancingConfig": [{balancing: {}}],
            "methodConfig": [{"name": names, "retryPolicy": _RETRY_POLICY}],
            "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
        }
    )


def channel_options(target: str, balancing: str) -> list[tuple[str, str | int]]:
    """Options for a channel to the target. balancing: SPREAD or STAY."""
    options: list[tuple[str, str | int]] = [
        ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
        ("grpc.service_config", service_config(balancing)),
    ]
    if is_loopback(target):
        # Machines behind a web proxy often set http_proxy without no_proxy for the loopback.
        options.append(("grpc.enable_http_proxy", 0))
    return options


def call_metadata(who: str | None, token: str | None = None) -> tuple[tuple[str, str], ...]:
    """What goes with every call: who makes it, for the server's audit log (percent-encoded, for headers are ASCII), and
    the token that proves it."""
    named = (("loramux-who", quote(who, safe=" @+:/")),) if who else ()
    return (*named, ("authorization", f"Bearer {token}")) if token else named


def refuse_exposure(target: str, token: str | None, credentials: grpc.ChannelCredentials | None) -> None:
    """Raises InvalidArgument where a token would travel so that others can read it."""
    if token and credentials is None and not is_loopback(target):
        raise InvalidArgument(f"a token would travel to {target} unencrypted; use TLS")


def tls_credentials(
    ca: str | PathLike[str] | None = None,
    client_cert: str | PathLike[str] | None = None,
    client_key: str | PathLike[str] | None = None,
) -> grpc.ChannelCredentials:
    """For a server with TLS, from files in PEM.

    ca: certificates of which one has signed the server's; None: those the machine trusts. client_cert and client_key:
    the client's own, for servers that ask for one.

    Raises:
        OSError: where a file cannot be read.
    """
    roots, key, chain = (None if file is None else Path(file).read_bytes() for file in (ca, client_key, client_cert))
    return grpc.ssl_channel_credentials(roots, key, chain)


def is_loopback(target: str) -> bool:
    """Whether the target is this machine, with every address that it names."""
    scheme, _, path = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    addresses = path.removeprefix("///") if scheme in ("dns", "ipv4", "ipv6") else target
    return all(_is_here(_host(address)) for address in addresses.split(","))


def _host(address: str) -> str:
    """Of HOST:PORT, HOST or [HOST]:PORT."""
    return address[1:].partition("]")[0] if address.startswith("[") else address.partition(":")[0]


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name: 127.example.org is any machine's
        return False
