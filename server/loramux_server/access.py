"""Who may do what: bearer tokens, kept as digests in a TOML file, and the scope that each RPC asks for.

Takes the file and the metadata of calls; gives the holder of the token, or why not. It knows no gRPC, and not what of
its limits a holder has used up (`limits` does). The file, one table a holder:

    [gallery]
    sha256 = "9f86d0..."                # of the token, which is nowhere else
    scopes = ["generate", "adapters.read"]
    expires = 2027-01-31                # optional
    requests_per_second = 5             # limits, all optional: see Limits
"""

import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from loramux_server.errors import BadSetting, Forbidden, Unknown

_PREFIX = "lmx_"  # so that scanners for leaked secrets can tell ours
_NAME = re.compile(r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$")


class Scope(StrEnum):
    """What a token may be good for; ADMIN is good for everything."""

    GENERATE = "generate"
    ADAPTERS_READ = "adapters.read"
    ADAPTERS_WRITE = "adapters.write"
    ADMIN = "admin"


_G, _A = "/loramux.v1.GenerationService/", "/loramux.v1.AdapterService/"
OPEN = ("/grpc.health.v1.Health/",)
"""Services that anybody may call: probes have no tokens."""
NEEDED: Mapping[str, Scope | None] = {
    f"{_G}Generate": Scope.GENERATE,
    f"{_G}GenerateStream": Scope.GENERATE,
    f"{_G}GetServerInfo": None,
    f"{_A}GetAdapter": Scope.ADAPTERS_READ,
    f"{_A}ListAdapters": Scope.ADAPTERS_READ,
    f"{_A}ListVersions": Scope.ADAPTERS_READ,
    f"{_A}DownloadAdapter": Scope.ADAPTERS_READ,
    f"{_A}UploadAdapter": Scope.ADAPTERS_WRITE,
    f"{_A}WriteUploadChunk": Scope.ADAPTERS_WRITE,
    f"{_A}GetUpload": Scope.ADAPTERS_WRITE,
    f"{_A}AbortUpload": Scope.ADAPTERS_WRITE,
    f"{_A}UpdateAdapter": Scope.ADAPTERS_WRITE,
    f"{_A}DeleteAdapter": Scope.ADAPTERS_WRITE,
    f"{_A}UndeleteAdapter": Scope.ADAPTERS_WRITE,
    f"{_A}PreloadAdapter": Scope.ADAPTERS_WRITE,
    f"{_A}PinAdapter": Scope.ADMIN,
    f"{_A}UnpinAdapter": Scope.ADMIN,
    f"{_A}ListAuditEvents": Scope.ADMIN,
}
"""Scope by method; None: any token. What stands nowhere, reflection included, asks for ADMIN."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a holder may use; None: no bound of its own.

    requests_per_second: calls, with bursts of ten seconds' worth; concurrent_images: waiting or running at once;
    cost_per_minute: megapixel-steps (width x height x steps x pictures / 10^6, twice that under guidance);
    upload_bytes_per_day: of adapter files.
    """

    requests_per_second: float | None = None
    concurrent_images: int | None = None
    cost_per_minute: float | None = None
    upload_bytes_per_day: int | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose token it is."""

    name: str
    scopes: frozenset[Scope]
    limits: Limits = Limits()
    expires: date | None = None

    def may(self, scope: Scope | None) -> bool:
        """Whether one of the scopes is this one."""
        return scope is None or scope in self.scopes or Scope.ADMIN in self.scopes


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    expires: date | None = None
    requests_per_second: Annotated[float, Field(gt=0)] | None = None
    concurrent_images: Annotated[int, Field(ge=1)] | None = None
    cost_per_minute: Annotated[float, Field(gt=0)] | None = None
    upload_bytes_per_day: Annotated[int, Field(ge=1)] | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """Holders by the SHA-256 of their tokens, in hex."""

    holders: Mapping[str, Holder]

    def admit(self, method: str, metadata: Iterable[tuple[str, str | bytes]], today: date | None = None) -> Holder:
        """The holder whose token comes with a call.

        Raises:
            Unknown: without a token, or with one that is nobody's or has expired.
            Forbidden: where the token lacks the method's scope.
        """
        holder = self._holder(metadata)
        if holder.expires is not None and (today or datetime.now(UTC).date()) > holder.expires:
            raise Unknown("TOKEN_EXPIRED", f"the token of {holder.name} was good until {holder.expires}")
        scope = NEEDED.get(method, Scope.ADMIN)
        if not holder.may(scope):
            raise Forbidden(holder.name, str(scope), method.rpartition("/")[2])
        return holder

    def _holder(self, metadata: Iterable[tuple[str, str | bytes]]) -> Holder:
        said = next((str(value) for key, value in metadata if key == "authorization"), "")
        kind, _, token = said.partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise Unknown("TOKEN_MISSING", "no token came with the call, expected authorization: Bearer TOKEN")
        digest, found = digest_of(token.strip()), None
        for known, holder in self.holders.items():  # all of them, so that the time tells nothing
            if hmac.compare_digest(known, digest):
                found = holder
        if found is None:
            raise Unknown("TOKEN_UNKNOWN", "the token that came with the call is nobody's")
        return found


def digest_of(token: str) -> str:
    """SHA-256 in hex. Tokens are random, 256 bits: a slow hash would add nothing."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_access(file: Path) -> Access:
    """The holders of a file.

    Raises:
        BadSetting: where it is no such file; the message has no digest in it.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSetting(f"tokens: {file} cannot be read as TOML: {error}") from None
    problems: list[str] = []
    holders: dict[str, Holder] = {}
    for name, table in tables.items():
        try:
            if not _NAME.fullmatch(name):
                raise ValueError(f"is no name of a holder, expected {_NAME.pattern}")
            entry = _Entry.model_validate(table)
            if entry.sha256 in holders:
                raise ValueError(f"has the token of {holders[entry.sha256].name}, expected one of its own")
            holders[entry.sha256] = _holder(name, entry)
        except ValidationError as error:
            problems += [f"{name}.{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        except ValueError as error:
            problems.append(f"{name} {error}")
    if problems:
        raise BadSetting("\n".join(f"tokens: {file}: {problem}" for problem in problems))
    return Access(holders)


def new_token() -> str:
    """256 random bits."""
    return _PREFIX + secrets.token_urlsafe(32)


def entry_text(name: str, token: str, scopes: Iterable[Scope]) -> str:
    """The table of a new holder, as TOML.

    Raises:
        BadSetting: where the name is none.
    """
    if not _NAME.fullmatch(name):
        raise BadSetting(f"{name!r} is no name of a holder, expected {_NAME.pattern}")
    listed = ", ".join(f'"{scope}"' for scope in scopes)
    return f'["{name}"]\nsha256 = "{digest_of(token)}"\nscopes = [{listed}]\n'


def _holder(name: str, entry: _Entry) -> Holder:
    limits = Limits(
        entry.requests_per_second, entry.concurrent_images, entry.cost_per_minute, entry.upload_bytes_per_day
    )
    return Holder(name, entry.scopes, limits, entry.expires)
