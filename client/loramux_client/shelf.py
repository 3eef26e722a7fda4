"""Adapters on a server's shelf, and what happened to an upload.

Takes and gives plain values; knows neither protobuf nor gRPC.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import TypedDict

from loramux_client.errors import InvalidArgument, Violation

Progress = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all): before a chunk goes out, after one has come in."""

MAX_NAME = 64


class UploadOptions(TypedDict, total=False):
    """What may be said of an upload besides file and name."""

    validate_only: bool
    """Check and report, publish nothing."""
    layout: str
    """Only needed where the file's shapes fit several."""
    peft_config: str
    """Text of the adapter_config.json that belongs to the file."""
    alpha: float
    """For modules of which the file gives none."""
    trigger: str
    """What stands for an embedding in a prompt; else the token that the file names, or the adapter's name."""
    labels: Mapping[str, str]
    default_weight: float
    trigger_words: Sequence[str]
    description: str
    licence: str
    base_model: str


class AdapterChanges(TypedDict, total=False):
    """What may be said anew of an adapter; what is not given stays as it is."""

    labels: Mapping[str, str]
    """All of them."""
    default_weight: float | None
    """None: 1 again."""
    trigger_words: Sequence[str]
    """Empty: those of the file again."""
    description: str
    licence: str
    """Empty: the file's again."""
    base_model: str
    """Empty: the file's again."""
    aliases: Mapping[str, int]
    """All of them, each with the number of its version."""


@dataclass(frozen=True, slots=True)
class FileNotes:
    """What a file says of itself. trigger_source: the key of its metadata, or embedding; text of strangers."""

    trigger_words: tuple[str, ...]
    trigger_source: str
    licence: str
    base_model: str


@dataclass(frozen=True, slots=True)
class Embedding:
    """What an embedding is: in a prompt its trigger becomes so many vectors; widths: theirs, by text encoder."""

    trigger: str
    vectors: int
    widths: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One immutable version of an adapter. kind: lora or embedding; embedding: what it is, where it is one.

    device_bytes: what it takes on the device in numbers of 16 bits. notes: what its file says of itself. bundled:
    embeddings that came in a LoRA's file, and act with it where their triggers stand.
    """

    adapter: str
    number: int
    digest: str
    blob_digest: str
    size_bytes: int
    kind: str
    layout: str
    layout_digest: str
    rank: int
    create_time: datetime | None
    embedding: Embedding | None
    device_bytes: int
    notes: FileNotes
    bundled: tuple[Embedding, ...] = ()


@dataclass(frozen=True, slots=True)
class Adapter:
    """A named thing on the shelf.

    trigger_words, licence, base_model: the owner's, or else those of the latest version's file; trigger_source says
    which. aliases: numbers of versions. etag: another one after every change. asked_version: the one that it was
    looked up by, as name@number or name@alias. pins: tiers, by reference as it was pinned. tier: where the latest
    version is now: disk, host or device.
    """

    name: str
    latest_version: AdapterVersion
    labels: Mapping[str, str]
    default_weight: float | None
    trigger_words: tuple[str, ...]
    description: str
    create_time: datetime | None
    update_time: datetime | None
    delete_time: datetime | None
    licence: str
    base_model: str
    aliases: Mapping[str, int]
    etag: str
    trigger_source: str
    asked_version: AdapterVersion | None
    pins: Mapping[str, str]
    tier: str


@dataclass(frozen=True, slots=True)
class Preloaded:
    """What was brought into a tier, and the tier it is in."""

    version: AdapterVersion
    tier: str


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """A change of the shelf: upload, update, delete, undelete, pin, unpin, purge, or gc of no adapter. version: the one
    uploaded, else None."""

    time: datetime | None
    who: str
    action: str
    adapter: str
    version: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class MatchedModule:
    """One module of the base that an adapter acts on: what the file holds for it (algorithm), how that is applied
    (operation), and the axis of its weight decomposition, empty without."""

    module: str
    kind: str
    rank: int
    scale: float
    algorithm: str
    operation: str
    axis: str


@dataclass(frozen=True, slots=True)
class IgnoredKey:
    """A tensor of the file that is not used, and why."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class AcceptReport:
    """What the store found in a file. bundled: embeddings that came in a LoRA's file."""

    family: str
    layout: str
    evidence: tuple[str, ...]
    matched: tuple[MatchedModule, ...]
    ignored: tuple[IgnoredKey, ...]
    warnings: tuple[str, ...]
    embedding: Embedding | None = None
    bundled: tuple[Embedding, ...] = ()


@dataclass(frozen=True, slots=True)
class Upload:
    """How an upload ended. version is None after validate_only; created is False where the same
    bytes with the same options were the latest version already."""

    version: AdapterVersion | None
    report: AcceptReport
    created: bool


@dataclass(frozen=True, slots=True)
class UploadState:
    """How far an upload has come. ended: what it became, None while it is unfinished; expire_time: when it is thrown
    away if nothing more comes, None once it has ended."""

    upload_id: str
    received: int
    size: int
    expire_time: datetime | None
    ended: Upload | None


def name_of(path: str | PathLike[str]) -> str:
    """A valid adapter name made from a file's name; InvalidArgument where nothing of it can stay."""
    words = re.sub(r"[^a-z0-9._-]+", "-", Path(path).stem.lower())
    name = words.strip("._-")[:MAX_NAME].strip("._-")
    if not name:
        wrong = Violation("name", "say one")
        message = f"{Path(path).name!r} gives no adapter name"
        raise InvalidArgument(message, reason="UNSENDABLE", violations=[wrong])
    return name


def upload_name(content: str | PathLike[str] | bytes, name: str | None) -> str:
    """The name to upload under: the one said, or that of the file."""
    if name is not None:
        return name
    if isinstance(content, bytes):
        raise TypeError("bytes have no name; say one")
    return name_of(content)
