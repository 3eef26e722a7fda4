"""How a channel to a server is set up, sync or asyncio.

Takes: the target. Gives: channel options. Does not know what is called.
"""

from __future__ import annotations

import json
from urllib.parse import quote

from loramux_client.rpcs import SAFE_TO_REPEAT

DEFAULT_TIMEOUT = 600.0
"""Seconds. Long enough for pictures on a CPU, short enough that nothing hangs for ever."""

MAX_RECEIVE_BYTES = 64 * 1024 * 1024
"""Sixteen 1024x1024 PNGs fit; gRPC's own 4 MiB would refuse them."""

# Only "nobody there" is tried again, and only where repeating does no harm.
_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.2s",
    "maxBackoff": "5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def service_config() -> str:
    """The gRPC service config, as JSON."""
    paths = [rpc.path.strip("/").split("/") for rpc in SAFE_TO_REPEAT]
    names = [{"service": service, "method": method} for service, method in paths]
    return json.dumps(
        {
            "methodConfig": [{"name": names, "retryPolicy": _RETRY_POLICY}],
            "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
        }
    )


def channel_options(target: str) -> list[tuple[str, str | int]]:
    """Options for a channel to the target."""
    options: list[tuple[str, str | int]] = [
        ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
        ("grpc.service_config", service_config()),
    ]
    if is_loopback(target):
        # Machines behind a web proxy often set http_proxy without no_proxy for the loopback.
        options.append(("grpc.enable_http_proxy", 0))
    return options


def call_metadata(who: str | None) -> tuple[tuple[str, str], ...]:
    """What goes with every call: who makes it, for the server's audit log. Percent-encoded, for headers are ASCII."""
    return (("loramux-who", quote(who, safe=" @+:/")),) if who else ()


def is_loopback(target: str) -> bool:
    """Whether the target is this machine."""
    return target.startswith(("127.", "localhost:", "[::1]:", "unix:"))
