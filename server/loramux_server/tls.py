"""The server's certificate: read, checked, and exchanged while it serves.

Takes the files that the settings name; gives gRPC's credentials. It knows no tokens and no calls.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from loramux_server.errors import BadSetting
from loramux_server.settings import Settings


@dataclass(frozen=True, slots=True)
class Identity:
    """What proves who the server is, PEM. client_ca: who may sign clients' certificates, None: clients need none."""

    key: bytes
    chain: bytes
    client_ca: bytes | None
    expires: datetime

    @property
    def grpc_form(self) -> grpc.ServerCertificateConfiguration:
        """As gRPC takes it."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.chain)], self.client_ca)


class Credentials:
    """gRPC's credentials of an identity that can be exchanged: the next connection is greeted with the newest."""

    def __init__(self, identity: Identity) -> None:
        self._newest: grpc.ServerCertificateConfiguration | None = None
        # None is no change; the stubs do not know.
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", self._fetch)
        self.grpc_form = grpc.dynamic_ssl_server_credentials(
            identity.grpc_form, fetch, require_client_authentication=identity.client_ca is not None
        )

    def exchange(self, identity: Identity) -> None:
        """From the next connection on."""
        self._newest = identity.grpc_form

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        newest, self._newest = self._newest, None
        return newest


def files(settings: Settings) -> tuple[Path, ...]:
    """All that an identity is made of."""
    return tuple(file for file in (settings.tls_cert, settings.tls_key, settings.tls_client_ca) if file is not None)


def read_identity(settings: Settings) -> Identity | None:
    """The identity that the settings name; None where they name none.

    Raises:
        BadSetting: where a file is missing, cannot be read, does not belong to the others, or has expired.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        if files(settings):
            given = ", ".join(map(str, files(settings)))
            raise BadSetting(f"tls_cert and tls_key: expected both, only {given} is given")
        return None
    chain, key = _bytes("tls_cert", settings.tls_cert), _bytes("tls_key", settings.tls_key)
    client_ca = None if settings.tls_client_ca is None else _bytes("tls_client_ca", settings.tls_client_ca)
    first = _certificates("tls_cert", settings.tls_cert, chain)[0]
    if settings.tls_client_ca is not None and client_ca is not None:
        _certificates("tls_client_ca", settings.tls_client_ca, client_ca)
    try:
        public = load_pem_private_key(key, None).public_key()
    except (ValueError, TypeError, InvalidSignature) as error:
        raise BadSetting(f"tls_key: {settings.tls_key} is no private key in PEM without a password: {error}") from None
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if public.public_bytes(*form) != first.public_key().public_bytes(*form):
        raise BadSetting(f"tls_key: {settings.tls_key} is not the key of the first certificate in {settings.tls_cert}")
    if first.not_valid_after_utc <= datetime.now(UTC):
        raise BadSetting(f"tls_cert: {settings.tls_cert} expired on {first.not_valid_after_utc:%Y-%m-%d}")
    return Identity(key, chain, client_ca, first.not_valid_after_utc)


def _bytes(name: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadSetting(f"{name}: {file} cannot be read: {error.strerror}") from None


def _certificates(name: str, file: Path, text: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(text)
    except ValueError as error:
        raise BadSetting(f"{name}: {file} holds no certificates in PEM: {error}") from None
