"""Pages of what the catalog lists.

Takes page sizes, tokens and filters as they came; gives pages whose tokens go on with the same listing only. Knows no
SQL.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from loramux_store.catalog import Catalog
from loramux_store.catalog_queries import Key
from loramux_store.errors import InvalidArgument
from loramux_store.names import check_name
from loramux_store.paging import check_page_size, read_token, write_token
from loramux_store.record import AdapterRecord, AuditEvent, Page, VersionSummary
from loramux_store.selection import Selection, read_selection

__all__ = ["adapter_page", "event_page", "version_page"]

T = TypeVar("T")

_EPOCH = datetime.fromtimestamp(0, UTC)
_TIME = re.compile(r"[0-9]{1,18}\Z")


def adapter_page(
    catalog: Catalog, page_size: int, page_token: str, filter: str, order_by: str, deleted: bool
) -> Page[AdapterRecord]:
    """Adapters that a filter selects, in an order; deleted: those too."""
    size, selection = check_page_size(page_size), read_selection(filter, order_by, deleted=deleted)
    listing = f"{'all' if deleted else 'live'} adapters ({order_by}) ({filter})"
    after = read_token(page_token, listing, str)
    rows = catalog.adapters(selection, size + 1, None if after is None else _read_key(after))
    return _page(rows, size, listing, lambda record: _key(record, selection))


def version_page(catalog: Catalog, name: str, page_size: int, page_token: str) -> Page[VersionSummary]:
    """Versions of an adapter, the newest first."""
    size, listing = check_page_size(page_size), f"versions of {name}"
    rows = catalog.versions(name, size + 1, read_token(page_token, listing, int))
    return _page(rows, size, listing, lambda record: record.number)


def event_page(catalog: Catalog, page_size: int, page_token: str, name: str) -> Page[AuditEvent]:
    """Events of an adapter, or of all, the newest first."""
    size, listing = check_page_size(page_size), f"events of {name or 'all adapters'}"
    rows = catalog.events(name, size + 1, read_token(page_token, listing, int))
    page = _page(rows, size, listing, lambda row: row[0])
    return Page(tuple(event for _, event in page.items), page.next_page_token)


def _page(rows: list[T], size: int, listing: str, key: Callable[[T], str | int]) -> Page[T]:
    token = write_token(listing, key(rows[size - 1])) if len(rows) > size else ""
    return Page(tuple(rows[:size]), token)


def _key(record: AdapterRecord, selection: Selection) -> str:
    """Where a page ends, as text of a token."""
    time = {"create_time": record.create_time, "update_time": record.update_time}.get(selection.order, _EPOCH)
    return f"{(time - _EPOCH) // timedelta(microseconds=1)} {record.name}"


def _read_key(text: str) -> Key:
    time, _, name = text.partition(" ")
    if not _TIME.match(time):
        raise InvalidArgument("page_token", text, "a token from an earlier page")
    return int(time), check_name(name, "page_token")
