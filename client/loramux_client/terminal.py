"""The terminal: where results, errors and progress go.

Takes: text and values. Gives: results on stdout, everything else on stderr. Does not know what they
mean.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.table import Table

PIPED_WIDTH = 200
"""Columns of a table that no terminal bounds: wide enough that nothing is cut."""


def say(text: str) -> None:
    """A line of result."""
    print(plain(text))


def complain(text: str) -> None:
    """A line that is no result."""
    print(plain(text), file=sys.stderr)


def plain(text: str) -> str:
    """The text without control characters: names and notes come from strangers."""
    return "".join(c if c.isprintable() else " " for c in text)


def say_json(value: Any) -> None:
    """A value of ours, or several, as JSON."""
    print(json.dumps(value, default=_jsonable, indent=2, ensure_ascii=False))


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"no JSON for {type(value).__name__}")


def say_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table of results."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row))
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    Console(markup=False, highlight=False, emoji=False, width=width).print(table)


def progress(*columns: ProgressColumn) -> Progress:
    """Progress bars on stderr, gone when they are done; none where nobody looks."""
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def size(count: int) -> str:
    """Bytes, for people."""
    return f"{count / 1024:.1f} KiB" if count < 1024 * 1024 else f"{count / 1024 / 1024:.1f} MiB"


def moment(time: datetime) -> str:
    """A time, for people."""
    return time.strftime("%Y-%m-%d %H:%M UTC")


def short(digest: str) -> str:
    """Enough of a digest to tell it from others."""
    return digest[:12]
