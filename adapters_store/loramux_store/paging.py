"""Page sizes and page tokens.

Takes what a client sent; gives the position to go on from, or InvalidArgument. A token is opaque to
clients, names the listing it belongs to, and holds the last key seen: rows that come or go between
pages are never shown twice. Knows no SQL.
"""

from __future__ import annotations

import base64
import json
from typing import Any, cast

from loramux_store.errors import InvalidArgument

__all__ = ["MAX_PAGE", "check_page_size", "read_token", "write_token"]

MAX_PAGE = 1000
_MAX_TOKEN = 8192  # characters; one of ours holds a filter of 500, of which each may become 6 of JSON


def check_page_size(size: int) -> int:
    """At least 1; more than MAX_PAGE means MAX_PAGE."""
    if size < 1:
        raise InvalidArgument("page_size", size, "at least 1")
    return min(size, MAX_PAGE)


def write_token(listing: str, last: str | int) -> str:
    """A token for the page after `last`."""
    text = json.dumps([listing, last], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_token(token: str, listing: str, kind: type[str] | type[int]) -> Any:
    """The last key seen, of the kind that the listing is ordered by; None for an empty token."""
    if not token:
        return None
    if len(token) > _MAX_TOKEN:
        raise _foreign(token, listing)
    try:
        found: object = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (ValueError, RecursionError):
        found = None
    pair = cast("list[object]", found) if isinstance(found, list) else []
    if len(pair) == 2 and pair[0] == listing:
        at = pair[1]
        counted = isinstance(at, str) or (isinstance(at, int) and abs(at) < 1 << 63)  # what SQLite counts to
        if isinstance(at, kind) and type(at) is kind and counted and write_token(listing, at) == token:
            return at
    raise _foreign(token, listing)


def _foreign(token: str, listing: str) -> InvalidArgument:
    return InvalidArgument("page_token", token, f"a token from an earlier page of {listing}")
