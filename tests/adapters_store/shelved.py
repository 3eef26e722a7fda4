"""Adapters put into a catalog without any file: as many as a test wants, at once."""

import hashlib
from typing import Any

from loramux_store import AcceptReport, Embedding, FileNotes, Layout, MatchedModule, UploadSpec, VersionRecord
from loramux_store.catalog import Catalog, NewVersion
from loramux_store.report_json import report_to_json


def new_version(seed: object, layout: Layout, **fields: Any) -> NewVersion:
    """Another version for every seed; with embedding=True one of that kind."""
    digest = hashlib.sha256(repr(seed).encode()).hexdigest()
    embedding = Embedding("<cat>", 2, {"text_encoder": 24}) if fields.pop("embedding", False) else None
    matched = () if embedding else (MatchedModule("unet.conv_in", "conv2d", 4, 4.0, 1.0),)
    report = AcceptReport(layout.name, layout.digest, (), "kohya", matched, (), (), embedding)
    return NewVersion(
        **{
            "digest": digest,
            "blob_digest": digest,
            "size_bytes": 1000,
            "layout": layout,
            "kind": "embedding" if embedding else "lora",
            "rank": 0 if embedding else 4,
            "device_bytes": 64,
            "embedding": embedding,
            "bundled": (),
            "notes": FileNotes(),
            "options": "{}",
            "report": report_to_json(report),
            **fields,
        }
    )


def shelve(catalog: Catalog, name: str, new: NewVersion, *, who: str = "w", **said: Any) -> tuple[VersionRecord, bool]:
    """A version under a name."""
    return catalog.add_version(UploadSpec(name=name, **said), new, who, lambda: None)
