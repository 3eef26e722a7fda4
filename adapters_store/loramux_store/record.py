"""The values the store takes and gives: specs, records, reports.

Takes nothing; gives frozen dataclasses. Knows no SQL, no files, no tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, Literal, TypeVar

__all__ = [
    "AcceptReport",
    "AdapterChange",
    "AdapterRecord",
    "AuditEvent",
    "Collected",
    "Embedding",
    "FileNotes",
    "Finding",
    "InterpretOptions",
    "MatchedModule",
    "Page",
    "Pin",
    "Published",
    "Reclaimed",
    "StoreStats",
    "Tier",
    "UploadSpec",
    "VersionRecord",
    "VersionSummary",
]

T = TypeVar("T")

Tier = Literal["host", "device"]
"""Where a pin keeps a version: in a server's host memory or on its device."""


@dataclass(frozen=True, slots=True)
class InterpretOptions:
    """How bytes are interpreted; part of a version's digest.

    peft_config: the text of a PEFT adapter_config.json, for files that do not carry it.
    alpha: alpha for modules whose file says none.
    trigger: what stands for an embedding in a prompt; a version of kind `embedding` always has one.
    bundled: whether a LoRA file's bundled embeddings are part of the version; False of one that has none.
    """

    peft_config: str | None = None
    alpha: float | None = None
    trigger: str | None = None
    bundled: bool = True


@dataclass(frozen=True, slots=True)
class UploadSpec:
    """What an upload announces, before any byte of it.

    size_bytes, sha256: checked when given. layout: name or digest, settles what the shapes leave
    open. Fields left empty keep what an existing adapter of that name has.
    """

    name: str
    size_bytes: int | None = None
    sha256: str | None = None
    layout: str | None = None
    options: InterpretOptions = field(default_factory=InterpretOptions)
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    default_weight: float | None = None
    trigger_words: tuple[str, ...] = ()
    description: str = ""
    licence: str = ""
    base_model: str = ""
    validate_only: bool = False


@dataclass(frozen=True, slots=True)
class AdapterChange:
    """What an owner says anew of an adapter; None leaves a field as it is.

    clear_default_weight: blends that give no weight mean 1 again. aliases: all of them, with the number of the version
    that each means. Where trigger words, licence or base_model are emptied, those of the latest file show again.
    """

    labels: Mapping[str, str] | None = None
    default_weight: float | None = None
    clear_default_weight: bool = False
    trigger_words: tuple[str, ...] | None = None
    description: str | None = None
    licence: str | None = None
    base_model: str | None = None
    aliases: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class FileNotes:
    """What a file says of itself: source names where its trigger words stand. Untrusted text, cut and cleaned."""

    trigger_words: tuple[str, ...] = ()
    source: str = ""
    licence: str = ""
    base_model: str = ""


@dataclass(frozen=True, slots=True)
class MatchedModule:
    """One module the file touches.

    rank: its rank rows; scale: what its delta is multiplied by; algorithm: what the file holds, such as loha;
    operation: how it is applied (rows, kronecker, hadamard, dense, bias, norm, and +bias); axis: of its weight
    decomposition, output or input; side_values: numbers on the device beside rank rows.
    """

    module: str
    kind: Literal["linear", "conv2d", "norm"]
    rank: int
    alpha: float
    scale: float
    algorithm: str = "lora"
    operation: str = "rows"
    axis: Literal["", "output", "input"] = ""
    side_values: int = 0


@dataclass(frozen=True, slots=True)
class Embedding:
    """A textual inversion: in a prompt its trigger becomes so many vectors; widths: theirs, by text encoder."""

    trigger: str
    vectors: int
    widths: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class AcceptReport:
    """What was found in a file. A warning is `code: text`. embedding: where it is one; it touches no module.
    bundled: embeddings that came in a LoRA's file, by their triggers."""

    layout_name: str
    layout_digest: str
    evidence: tuple[str, ...]
    family: str
    matched: tuple[MatchedModule, ...]
    ignored: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    embedding: Embedding | None = None
    bundled: tuple[Embedding, ...] = ()

    @property
    def embeddings(self) -> tuple[Embedding, ...]:
        """The one that it is, or those that came with it."""
        return self.bundled if self.embedding is None else (self.embedding,)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSummary:
    """One immutable version, as listings tell it.

    kind: lora or embedding. rank: the largest of any module; 0 of an embedding. device_bytes: what it takes on the
    device in numbers of 16 bits; twice that where the base computes in fp32, but for vectors, which are
    fp32 everywhere. embedding: what it is, where it is one. bundled: embeddings that came in a LoRA's file.
    """

    adapter: str
    number: int
    digest: str
    blob_digest: str
    size_bytes: int
    kind: str
    layout_name: str
    layout_digest: str
    rank: int
    device_bytes: int
    create_time: datetime
    embedding: Embedding | None
    bundled: tuple[Embedding, ...]
    notes: FileNotes

    @property
    def embeddings(self) -> tuple[Embedding, ...]:
        """The one that it is, or those that came with it."""
        return self.bundled if self.embedding is None else (self.embedding,)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord(VersionSummary):
    """One immutable version, with all that was found in its file. ranks: by module; an embedding has none."""

    ranks: Mapping[str, int]
    report: AcceptReport
    options: InterpretOptions


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """One name on the shelf.

    trigger_words, licence, base_model: the owner's; where the owner says none, those of the latest version's file.
    aliases: numbers of versions, by alias. pins: tiers, by reference as it was pinned. etag: another one after every
    change of anything here.
    """

    name: str
    latest_version: VersionSummary
    labels: Mapping[str, str]
    default_weight: float | None
    trigger_words: tuple[str, ...]
    trigger_source: str
    description: str
    licence: str
    base_model: str
    aliases: Mapping[str, int]
    pins: Mapping[str, Tier]
    etag: str
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None


@dataclass(frozen=True, slots=True)
class Pin:
    """A reference, such as `ink` or `ink@prod`, and where what it means is to be kept."""

    reference: str
    tier: Tier


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One change of the shelf. action: upload, update, delete, undelete, pin, unpin, purge, or gc of no adapter;
    detail: what of it, in words."""

    time: datetime
    who: str
    action: str
    adapter: str
    version: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class Published:
    """What became of an upload.

    version is None after validate_only; created is False when the latest version already had
    these bytes, options and layout.
    """

    version: VersionRecord | None
    report: AcceptReport
    created: bool


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a listing; an empty token means that it was the last."""

    items: tuple[T, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Counts of what is listed, bytes of the blobs, and what the disk has left."""

    adapters: int
    versions: int
    blobs: int
    bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What crashes and abandoned uploads had left, now gone: files and their bytes."""

    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Collected:
    """What gc removes. adapters: deleted for longer than the grace; files: path under the store, and bytes."""

    adapters: tuple[str, ...]
    files: tuple[tuple[str, int], ...]

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(size for _, size in self.files)


@dataclass(frozen=True, slots=True)
class Finding:
    """What fsck found. code: a word for programs; subject: a version (`ink@3`), or a path under the store.

    lost: uploaded bytes are damaged or gone, which no repair brings back; mended: it is as it should be again.
    """

    code: str
    subject: str
    detail: str
    lost: bool = False
    mended: bool = False
