"""Which adapters a listing shows, and in which order.

Takes the texts of a request; gives a Selection, or InvalidArgument. A filter is terms with white space between, all of
which must hold: `layout=sd1`, `kind=lora`, `labels.team=art`, `labels.team` (has it at all), and any other word, which
must stand in the name, the description or the trigger words, in upper or lower case. Double quotes hold a term
together. Knows no SQL.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal

from loramux_store.errors import InvalidArgument

__all__ = ["Selection", "read_selection"]

Order = Literal["name", "create_time", "update_time"]

_ORDERS: tuple[Order, ...] = ("name", "create_time", "update_time")
_KINDS = ("lora", "embedding")
_MAX_FILTER = 500
_MAX_ORDER = 100
_FILTER_RULE = (
    "terms such as layout=sd1, kind=lora, labels.team=art, labels.team, or words to find; "
    f"at most {_MAX_FILTER} characters"
)


@dataclass(frozen=True, slots=True)
class Selection:
    """layouts: names or digests, kinds, labels (value None: any) and words must all hold. deleted: show those too."""

    layouts: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    labels: tuple[tuple[str, str | None], ...] = ()
    words: tuple[str, ...] = ()
    order: Order = "name"
    descending: bool = False
    deleted: bool = False


def read_selection(filter: str = "", order_by: str = "", *, deleted: bool = False) -> Selection:
    """A Selection of the texts; empty ones mean all adapters, by name."""
    order, descending = _order(order_by)
    layouts, kinds, labels, words = list[str](), list[str](), list[tuple[str, str | None]](), list[str]()
    for term in _terms(filter):
        field, equals, value = term.partition("=")
        if field.startswith("labels."):
            labels.append((field.removeprefix("labels."), value if equals else None))
        elif not equals:
            words.append(term.casefold())
        elif field == "layout":
            layouts.append(value)
        elif field == "kind" and value in _KINDS:
            kinds.append(value)
        else:
            raise InvalidArgument("filter", term, _FILTER_RULE)
    return Selection(tuple(layouts), tuple(kinds), tuple(labels), tuple(words), order, descending, deleted)


def _terms(text: str) -> list[str]:
    if len(text) > _MAX_FILTER:
        raise InvalidArgument("filter", text, _FILTER_RULE)
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split, lexer.commenters, lexer.quotes, lexer.escape = True, "", '"', ""
    try:
        return [term for term in lexer if term]
    except ValueError:
        raise InvalidArgument("filter", text, f"a second double quote; {_FILTER_RULE}") from None


def _order(text: str) -> tuple[Order, bool]:
    words = [] if len(text) > _MAX_ORDER else text.split() or ["name"]
    for order in _ORDERS:
        if words in ([order], [order, "asc"], [order, "desc"]):
            return order, words[-1] == "desc"
    raise InvalidArgument("order_by", text, f"one of {', '.join(_ORDERS)}, then desc for the other way round")
