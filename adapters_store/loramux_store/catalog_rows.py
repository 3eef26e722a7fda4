"""Single rows of the catalog: written from specs, read as records.

Takes an open transaction, specs and rows; gives records. Knows neither when a transaction begins nor files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from loramux_store.layout import Layout
from loramux_store.record import AdapterRecord, InterpretOptions, UploadSpec, VersionRecord
from loramux_store.report_json import options_from_json, report_from_json
from loramux_store.schema import adapters, blobs, layouts, versions

__all__ = [
    "NewVersion",
    "adapter_of",
    "insert_adapter",
    "insert_layout",
    "insert_version",
    "is_latest",
    "now_us",
    "time_of",
    "update_adapter",
    "version_of",
]


@dataclass(frozen=True, slots=True)
class NewVersion:
    """What a finished upload adds."""

    digest: str
    blob_digest: str
    size_bytes: int
    layout: Layout
    kind: str
    options: str
    report: str


def is_latest(connection: sa.Connection, row: Any, new: NewVersion) -> bool:
    """Whether an adapter's latest version is that one already."""
    query = sa.select(versions.c.digest, versions.c.layout_digest).where(
        versions.c.adapter_id == row.id, versions.c.number == row.latest
    )
    return tuple(connection.execute(query).one()) == (new.digest, new.layout.digest)


def insert_adapter(connection: sa.Connection, spec: UploadSpec, now: int) -> int:
    """A new name; its id."""
    values = {
        "name": spec.name,
        "labels": json.dumps(dict(spec.labels), sort_keys=True),
        "default_weight": spec.default_weight,
        "trigger_words": json.dumps(spec.trigger_words),
        "description": spec.description,
        "latest": 1,
        "create_us": now,
        "update_us": now,
    }
    return connection.execute(adapters.insert().values(values).returning(adapters.c.id)).scalar_one()


def update_adapter(connection: sa.Connection, row: Any, spec: UploadSpec, number: int, now: int, same: bool) -> None:
    """An upload brings a deleted name back; what it leaves empty stays as it was."""
    said: dict[str, object] = {}
    if spec.labels:
        said["labels"] = json.dumps(dict(spec.labels), sort_keys=True)
    if spec.default_weight is not None:
        said["default_weight"] = spec.default_weight
    if spec.trigger_words:
        said["trigger_words"] = json.dumps(spec.trigger_words)
    if spec.description:
        said["description"] = spec.description
    changed = {key: value for key, value in said.items() if getattr(row, key) != value}
    if same and not changed and row.delete_us is None:
        return
    connection.execute(
        adapters.update().where(adapters.c.id == row.id).values(latest=number, update_us=now, delete_us=None, **changed)
    )


def insert_version(connection: sa.Connection, adapter_id: int, number: int, new: NewVersion, now: int) -> None:
    """A version, with its layout and blob where they are new."""
    insert_layout(connection, new.layout, now)
    connection.execute(
        insert(blobs).values(digest=new.blob_digest, size_bytes=new.size_bytes, create_us=now).on_conflict_do_nothing()
    )
    connection.execute(
        versions.insert().values(
            adapter_id=adapter_id,
            number=number,
            digest=new.digest,
            blob_digest=new.blob_digest,
            layout_digest=new.layout.digest,
            kind=new.kind,
            options=new.options,
            report=new.report,
            create_us=now,
        )
    )


def insert_layout(connection: sa.Connection, layout: Layout, now: int) -> None:
    """A layout, unless it is known."""
    connection.execute(
        insert(layouts)
        .values(digest=layout.digest, name=layout.name, body=layout.to_json(), create_us=now)
        .on_conflict_do_nothing()
    )


def version_of(row: Any) -> VersionRecord:
    """The record of a row of versions, joined with its adapter's name, blob and layout."""
    report = report_from_json(row.report)
    options: InterpretOptions = options_from_json(row.options)
    ranks = {module.module: module.rank for module in report.matched}
    return VersionRecord(
        adapter=row.adapter,
        number=row.number,
        digest=row.digest,
        blob_digest=row.blob_digest,
        size_bytes=row.size_bytes,
        kind=row.kind,
        layout_name=row.layout_name,
        layout_digest=row.layout_digest,
        rank=max(ranks.values(), default=0),
        ranks=ranks,
        create_time=time_of(row.create_us),
        report=report,
        options=options,
    )


def adapter_of(row: Any) -> AdapterRecord:
    """The record of a row of adapters, joined with its latest version."""
    deleted = row.adapter_delete_us
    return AdapterRecord(
        name=row.adapter,
        latest_version=version_of(row),
        labels=json.loads(row.adapter_labels),
        default_weight=row.adapter_default_weight,
        trigger_words=tuple(json.loads(row.adapter_trigger_words)),
        description=row.adapter_description,
        create_time=time_of(row.adapter_create_us),
        update_time=time_of(row.adapter_update_us),
        delete_time=None if deleted is None else time_of(deleted),
    )


def now_us() -> int:
    """Microseconds since 1970."""
    return int(datetime.now(UTC).timestamp() * 1_000_000)


def time_of(microseconds: int) -> datetime:
    """Of microseconds since 1970."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)
