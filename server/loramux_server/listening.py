"""Where the server listens, and whether it may: beyond this machine only encrypted and with callers that are known.

Takes settings; gives a port. It knows no calls.
"""

from ipaddress import ip_address

import grpc.aio

from loramux_server.errors import BadSetting
from loramux_server.settings import Settings
from loramux_server.tls import Credentials


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def refuse_openness(settings: Settings) -> None:
    """Raises BadSetting where strangers could reach the server and nothing would stop or hide them."""
    known = settings.tokens is not None or settings.tls_client_ca is not None
    if is_loopback(settings.host) or settings.insecure or (settings.tls_cert is not None and known):
        return
    raise BadSetting(
        f"host: {settings.host} can be reached from other machines. Either give a certificate (--tls-cert, --tls-key) "
        "and say who may call (--tokens, or --tls-client-ca for clients with certificates), or, where a proxy or the "
        "network does both, say --insecure"
    )


def listen(server: grpc.aio.Server, settings: Settings, credentials: Credentials | None) -> int:
    """Adds the port, and gives its number.

    Raises:
        RuntimeError: where the address is taken.
    """
    address = f"{settings.host}:{settings.port}"
    if credentials is None:
        return server.add_insecure_port(address)
    return server.add_secure_port(address, credentials.grpc_form)
