"""The adapter store: what is on the shelf.

Takes adapter files as people have them; keeps them exactly, under names and numbered versions, and
hands out records and paths to compiled factors. Knows no server, no kernels and no gRPC; importing
it imports no torch.
"""

from loramux_store.backup import Copied, back_up, restore
from loramux_store.layout import Layout, ModuleSpec, known_layout
from loramux_store.record import (
    AcceptReport,
    AdapterChange,
    AdapterRecord,
    AuditEvent,
    Embedding,
    FileNotes,
    InterpretOptions,
    MatchedModule,
    Page,
    Pin,
    Published,
    Reclaimed,
    StoreStats,
    Tier,
    UploadSpec,
    VersionRecord,
    VersionSummary,
)
from loramux_store.store import Store
from loramux_store.upload import Upload
from loramux_store.uploads import Unfinished

__all__ = [
    "AcceptReport",
    "AdapterChange",
    "AdapterRecord",
    "AuditEvent",
    "Copied",
    "Embedding",
    "FileNotes",
    "InterpretOptions",
    "Layout",
    "MatchedModule",
    "ModuleSpec",
    "Page",
    "Pin",
    "Published",
    "Reclaimed",
    "Store",
    "StoreStats",
    "Tier",
    "Unfinished",
    "Upload",
    "UploadSpec",
    "VersionRecord",
    "VersionSummary",
    "back_up",
    "known_layout",
    "restore",
]
