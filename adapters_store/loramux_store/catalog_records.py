"""Rows of the catalog, read as records.

Takes rows of the queries in `catalog_queries`; gives records. Knows no connections.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from loramux_store.record import AdapterRecord, AuditEvent, Embedding, FileNotes, VersionRecord, VersionSummary
from loramux_store.report_json import options_from_json, report_from_json

__all__ = ["adapter_of", "etag_of", "event_of", "reference", "summary_of", "time_of", "version_of"]


def summary_of(row: Any) -> VersionSummary:
    """Of a row of versions, joined with its adapter's name, blob and layout."""
    return VersionSummary(**_summary(row))


def version_of(row: Any) -> VersionRecord:
    """Of such a row that is also joined with its details."""
    report = report_from_json(row.report)
    ranks = {module.module: module.rank for module in report.matched}
    return VersionRecord(**_summary(row), ranks=ranks, report=report, options=options_from_json(row.options))


def _summary(row: Any) -> dict[str, Any]:
    words, source, licence, base_model = json.loads(row.notes)
    return {
        "adapter": row.adapter,
        "number": row.number,
        "digest": row.digest,
        "blob_digest": row.blob_digest,
        "size_bytes": row.size_bytes,
        "kind": row.kind,
        "layout_name": row.layout_name,
        "layout_digest": row.layout_digest,
        "rank": row.rank,
        "device_bytes": row.device_bytes,
        "create_time": time_of(row.create_us),
        "embedding": None if row.embedding is None else Embedding(*json.loads(row.embedding)),
        "bundled": tuple(Embedding(*each) for each in json.loads(row.bundled)),
        "notes": FileNotes(tuple(words), source, licence, base_model),
    }


def adapter_of(row: Any) -> AdapterRecord:
    """Of a row of adapters, joined with its latest version and its aliases."""
    latest = summary_of(row)
    said = tuple(json.loads(row.adapter_trigger_words))
    deleted = row.adapter_delete_us
    return AdapterRecord(
        name=row.adapter,
        latest_version=latest,
        labels=json.loads(row.adapter_labels),
        default_weight=row.adapter_default_weight,
        trigger_words=said or latest.notes.trigger_words,
        trigger_source="owner" if said else latest.notes.source,
        description=row.adapter_description,
        licence=row.adapter_licence or latest.notes.licence,
        base_model=row.adapter_base_model or latest.notes.base_model,
        aliases=json.loads(row.adapter_aliases),
        pins={reference(row.adapter, at): tier for at, tier in json.loads(row.adapter_pins).items()},
        etag=etag_of(row.adapter_create_us, row.adapter_revision),
        create_time=time_of(row.adapter_create_us),
        update_time=time_of(row.adapter_update_us),
        delete_time=None if deleted is None else time_of(deleted),
    )


def reference(name: str, at: str) -> str:
    """As it is spelled."""
    return f"{name}@{at}" if at else name


def etag_of(create_us: int, revision: int) -> str:
    """Of an adapter: a name that is made anew has another one."""
    return f"{create_us:x}-{revision:x}"


def event_of(row: Any) -> AuditEvent:
    """Of a row of the audit log."""
    return AuditEvent(time_of(row.time_us), row.who, row.action, row.adapter, row.number, row.detail)


def time_of(microseconds: int) -> datetime:
    """Of microseconds since 1970."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)
