"""What is asked of the catalog.

Takes names, numbers and selections; gives SELECTs whose rows `catalog_records` reads. Pages go on behind a key that an
index holds in order, so that the last page costs what the first does. Knows no connections.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from loramux_store.schema import adapters, aliases, audit, blobs, details, layouts, pins, versions
from loramux_store.selection import Selection

__all__ = [
    "Key",
    "adapter_page",
    "adapter_query",
    "event_page",
    "pin_query",
    "report_query",
    "version_page",
    "version_query",
]

Key = tuple[int, str]
"""Where a page of adapters ended: the time that it is ordered by (0 where by name), and the name."""

_VERSION = (
    versions,
    blobs.c.size_bytes,
    layouts.c.name.label("layout_name"),
    adapters.c.name.label("adapter"),
)
_VERSIONS = (
    adapters.join(versions, versions.c.adapter_id == adapters.c.id)
    .join(blobs, versions.c.blob_digest == blobs.c.digest)
    .join(layouts, versions.c.layout_digest == layouts.c.digest)
)
_DETAILED = _VERSIONS.join(
    details, sa.and_(details.c.adapter_id == versions.c.adapter_id, details.c.number == versions.c.number)
)
_ALIASES = (
    sa.select(sa.func.json_group_object(aliases.c.alias, aliases.c.number))
    .where(aliases.c.adapter_id == adapters.c.id)
    .scalar_subquery()
)
_PINS = (
    sa.select(sa.func.json_group_object(pins.c.at, pins.c.tier))
    .where(pins.c.adapter_id == adapters.c.id)
    .scalar_subquery()
)
_ADAPTER = (
    *(column.label(f"adapter_{column.name}") for column in adapters.c if column.name != "search"),
    _ALIASES.label("adapter_aliases"),
    _PINS.label("adapter_pins"),
)
_TIMES = {"create_time": adapters.c.create_us, "update_time": adapters.c.update_us}


def version_query(name: str, number: int) -> sa.Select[Any]:
    """A version with its details."""
    query = sa.select(*_VERSION, details.c.options, details.c.report).select_from(_DETAILED)
    return query.where(adapters.c.name == name, versions.c.number == number)


def report_query(blob_digest: str, layout_digest: str) -> sa.Select[Any]:
    """The first report on those bytes for that layout."""
    query = sa.select(details.c.report).select_from(_DETAILED)
    query = query.where(versions.c.blob_digest == blob_digest, versions.c.layout_digest == layout_digest)
    return query.order_by(versions.c.create_us).limit(1)


def version_page(name: str, count: int, below: int | None) -> sa.Select[Any]:
    """Versions, the newest first, with numbers below `below`."""
    query = sa.select(*_VERSION).select_from(_VERSIONS).where(adapters.c.name == name)
    if below is not None:
        query = query.where(versions.c.number < below)
    return query.order_by(versions.c.number.desc()).limit(count)


def adapter_query() -> sa.Select[Any]:
    """Adapters, each with its latest version."""
    latest = versions.c.number == adapters.c.latest
    return sa.select(*_VERSION, *_ADAPTER).select_from(_VERSIONS).where(latest)


def adapter_page(selection: Selection, count: int, after: Key | None) -> sa.Select[Any]:
    """The adapters of a selection that come after a key."""
    query = adapter_query().where(*_conditions(selection))
    columns = (_TIMES[selection.order], adapters.c.name) if selection.order in _TIMES else (adapters.c.name,)
    if after is not None:
        here, there = sa.tuple_(*columns), sa.tuple_(*after[-len(columns) :])
        query = query.where(here < there if selection.descending else here > there)
    ordered = [column.desc() if selection.descending else column for column in columns]
    return query.order_by(*ordered).limit(count)


def _conditions(selection: Selection) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if not selection.deleted:
        conditions.append(adapters.c.delete_us.is_(None))
    conditions += [sa.or_(layouts.c.name == each, layouts.c.digest == each) for each in selection.layouts]
    # Half of a column's values or more: a bare comparison would let SQLite begin at versions, and sort all adapters.
    conditions += [versions.c.kind.concat("") == kind for kind in selection.kinds]
    conditions += [sa.func.instr(adapters.c.search, word) > 0 for word in selection.words]
    for key, value in selection.labels:
        each = sa.func.json_each(adapters.c.labels).table_valued("key", "value")
        wanted = each.c.key == key if value is None else sa.and_(each.c.key == key, each.c.value == value)
        conditions.append(sa.exists(sa.select(sa.literal(1)).select_from(each).where(wanted)))
    return conditions


def pin_query() -> sa.Select[Any, Any, Any]:
    """Every pin of an adapter that is not deleted, with the adapter's name."""
    joined = pins.join(adapters, adapters.c.id == pins.c.adapter_id)
    query = sa.select(adapters.c.name, pins.c.at, pins.c.tier).select_from(joined)
    return query.where(adapters.c.delete_us.is_(None)).order_by(pins.c.create_us, adapters.c.name, pins.c.at)


def event_page(name: str, count: int, below: int | None) -> sa.Select[Any]:
    """Rows of the audit log, the newest first, with ids below `below`; of all adapters where the name is empty."""
    query = sa.select(audit).order_by(audit.c.id.desc()).limit(count)
    if name:
        query = query.where(audit.c.adapter == name)
    return query if below is None else query.where(audit.c.id < below)
