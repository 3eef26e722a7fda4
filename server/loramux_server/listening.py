"""Where the server listens, and whether it may: beyond this machine only encrypted and with callers that are known.

Takes settings; gives a port, and addresses as they are written. It knows no calls.
"""

import socket
from ipaddress import ip_address

import grpc.aio

from loramux_server.errors import BadSetting
from loramux_server.settings import Settings
from loramux_server.tls import Credentials


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ip_address(bare(host)).is_loopback
    except ValueError:
        return host == "localhost"


def bare(host: str) -> str:
    """Without the brackets that IPv6 addresses may have: as sockets take it."""
    return host.removeprefix("[").removesuffix("]")


def address(host: str, port: int) -> str:
    """HOST:PORT, an IPv6 address in brackets."""
    host = bare(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def refuse_strange(name: str, host: str) -> None:
    """Raises BadSetting where this machine cannot listen there, whatever the port. name: of the setting."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(bare(host), 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.bind(where)
    except OSError as error:
        raise BadSetting(f"{name}: {host} is no address that this machine can listen on: {error}") from None


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
    where = address(settings.host, settings.port)
    if credentials is None:
        return server.add_insecure_port(where)
    return server.add_secure_port(where, credentials.grpc_form)
