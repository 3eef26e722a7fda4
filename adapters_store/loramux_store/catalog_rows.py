"""Single rows of the catalog, written.

Takes an open transaction, specs and changes; gives what changed, in words. Knows neither when a transaction begins nor
files; `catalog_records` reads what is written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from loramux_store.catalog_records import reference
from loramux_store.errors import InvalidArgument, PinNotFound
from loramux_store.layout import Layout
from loramux_store.names import Ref
from loramux_store.record import AdapterChange, Embedding, FileNotes, Tier, UploadSpec
from loramux_store.schema import adapters, aliases, audit, blobs, details, layouts, pins, versions

__all__ = [
    "NewVersion",
    "change_adapter",
    "correct_reports",
    "insert_adapter",
    "insert_event",
    "insert_layout",
    "insert_version",
    "is_latest",
    "now_us",
    "set_pin",
    "upload_again",
    "write_search",
]

_MAX_SHOWN = 200  # characters of a value in the audit log


@dataclass(frozen=True, slots=True)
class NewVersion:
    """What a finished upload adds."""

    digest: str
    blob_digest: str
    size_bytes: int
    layout: Layout
    kind: str
    rank: int
    device_bytes: int
    embedding: Embedding | None
    bundled: tuple[Embedding, ...]
    notes: FileNotes
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
        "labels": _json(dict(spec.labels)),
        "default_weight": spec.default_weight,
        "trigger_words": _json(spec.trigger_words),
        "description": spec.description,
        "licence": spec.licence,
        "base_model": spec.base_model,
        "latest": 1,
        "create_us": now,
        "update_us": now,
    }
    return connection.execute(adapters.insert().values(values).returning(adapters.c.id)).scalar_one()


def upload_again(connection: sa.Connection, row: Any, spec: UploadSpec, number: int, now: int) -> str | None:
    """An upload brings a deleted name back; what it leaves empty stays as it was. What changed; None if nothing."""
    said = {
        "labels": _json(dict(spec.labels)) if spec.labels else None,
        "default_weight": spec.default_weight,
        "trigger_words": _json(spec.trigger_words) if spec.trigger_words else None,
        "description": spec.description or None,
        "licence": spec.licence or None,
        "base_model": spec.base_model or None,
    }
    changed = {key: value for key, value in said.items() if value is not None and getattr(row, key) != value}
    told = [f"{key}: {_shown(getattr(row, key))} -> {_shown(value)}" for key, value in changed.items()]
    if row.delete_us is not None:
        told.insert(0, "undeleted")
    if number == row.latest and not told:
        return None
    _update(connection, row, now, latest=number, delete_us=None, **changed)
    return "; ".join(told)


def change_adapter(connection: sa.Connection, row: Any, change: AdapterChange, now: int) -> str | None:
    """What an owner says anew; what changed, None if nothing."""
    said = {
        "labels": None if change.labels is None else _json(dict(change.labels)),
        "trigger_words": None if change.trigger_words is None else _json(change.trigger_words),
        "description": change.description,
        "licence": change.licence,
        "base_model": change.base_model,
        "default_weight": change.default_weight,
    }
    changed: dict[str, Any] = {k: v for k, v in said.items() if v is not None and getattr(row, k) != v}
    if change.clear_default_weight and row.default_weight is not None:
        changed["default_weight"] = None
    told = [f"{key}: {_shown(getattr(row, key))} -> {_shown(value)}" for key, value in changed.items()]
    if change.aliases is not None:
        told += _point(connection, row, change.aliases)
    if not told:
        return None
    _update(connection, row, now, **changed)
    return "; ".join(told)


def _point(connection: sa.Connection, row: Any, wanted: Mapping[str, int]) -> list[str]:
    """Make these the adapter's aliases; what changed of them."""
    of_adapter = aliases.c.adapter_id == row.id
    found = {each.alias: each.number for each in connection.execute(sa.select(aliases).where(of_adapter))}
    query = sa.select(versions.c.number).where(versions.c.adapter_id == row.id)
    numbers = set(connection.scalars(query.where(versions.c.number.in_(set(wanted.values())))))
    for alias, number in wanted.items():
        if number not in numbers:
            raise InvalidArgument(f"aliases.{alias}", number, f"a version of {row.name!r}, 1 to {row.latest}")
    connection.execute(aliases.delete().where(of_adapter))
    if wanted:
        rows = [{"adapter_id": row.id, "alias": alias, "number": number} for alias, number in wanted.items()]
        connection.execute(aliases.insert(), rows)
    names = sorted({*found, *wanted})
    moved = [name for name in names if found.get(name) != wanted.get(name)]
    return [f"alias {name}: {found.get(name, 'none')} -> {wanted.get(name, 'none')}" for name in moved]


def set_pin(connection: sa.Connection, row: Any, ref: Ref, tier: Tier | None, now: int) -> str | None:
    """Pins a reference of an adapter, None: does so no longer. What changed, in words; None if nothing.

    Raises:
        PinNotFound: there is none to take away.
    """
    mine = pins.c.adapter_id == row.id
    found = {each.at: each.tier for each in connection.execute(sa.select(pins).where(mine))}
    if tier is None and ref.at not in found:
        raise PinNotFound(reference(row.name, ref.at), [reference(row.name, at) for at in found])
    if found.get(ref.at) == tier:
        return None
    connection.execute(pins.delete().where(mine, pins.c.at == ref.at))
    if tier is not None:
        connection.execute(pins.insert().values(adapter_id=row.id, at=ref.at, tier=tier, create_us=now))
    _update(connection, row, now)
    return f"{reference(row.name, ref.at)}: {found.get(ref.at, 'none')} -> {tier or 'none'}"


def _update(connection: sa.Connection, row: Any, now: int, **values: Any) -> None:
    changed = {**values, "update_us": now, "revision": row.revision + 1}
    connection.execute(adapters.update().where(adapters.c.id == row.id).values(changed))


def write_search(connection: sa.Connection, adapter_id: int) -> None:
    """What filters look for words in, of the adapter as it is now."""
    told = (adapters.c.name, adapters.c.description, adapters.c.trigger_words)
    query = sa.select(*told, versions.c.notes, versions.c.embedding, versions.c.bundled).where(
        adapters.c.id == adapter_id, versions.c.adapter_id == adapters.c.id, versions.c.number == adapters.c.latest
    )
    row = connection.execute(query).one()
    words = json.loads(row.trigger_words) or json.loads(row.notes)[0]
    embeddings = [*([json.loads(row.embedding)] if row.embedding else ()), *json.loads(row.bundled)]
    text = "\n".join((row.name, row.description, *words, *(each[0] for each in embeddings))).casefold()
    connection.execute(adapters.update().where(adapters.c.id == adapter_id).values(search=text))


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
            rank=new.rank,
            device_bytes=new.device_bytes,
            embedding=None if new.embedding is None else _json(_embedding(new.embedding)),
            bundled=_json([_embedding(each) for each in new.bundled]),
            notes=_json(astuple(new.notes)),
            create_us=now,
        )
    )
    connection.execute(
        details.insert().values(adapter_id=adapter_id, number=number, options=new.options, report=new.report)
    )


def correct_reports(connection: sa.Connection, digest: str, layout_digest: str, report: str) -> None:
    """One report for all LoRAs of the same bytes, options and layout: they share a compiled file."""
    mine = sa.select(versions.c.adapter_id, versions.c.number).where(
        versions.c.digest == digest, versions.c.layout_digest == layout_digest
    )
    connection.execute(
        details.update()
        .where(sa.tuple_(details.c.adapter_id, details.c.number).in_(mine), details.c.report != report)
        .values(report=report)
    )


def _embedding(embedding: Embedding) -> tuple[object, ...]:
    return embedding.trigger, embedding.vectors, dict(embedding.widths)


def insert_layout(connection: sa.Connection, layout: Layout, now: int) -> None:
    """A layout, unless it is known."""
    connection.execute(
        insert(layouts)
        .values(digest=layout.digest, name=layout.name, body=layout.to_json(), create_us=now)
        .on_conflict_do_nothing()
    )


def insert_event(
    connection: sa.Connection,
    now: int,
    who: str,
    action: str,
    adapter: str,
    number: int | None = None,
    detail: str = "",
) -> None:
    """A row of the audit log."""
    connection.execute(
        audit.insert().values(time_us=now, who=who, action=action, adapter=adapter, number=number, detail=detail)
    )


def now_us() -> int:
    """Microseconds since 1970."""
    return int(datetime.now(UTC).timestamp() * 1_000_000)


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _shown(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
