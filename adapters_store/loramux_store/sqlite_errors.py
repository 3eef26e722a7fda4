"""What SQLite could not do, in the words of the store's errors.

Takes a block that speaks to SQLite through SQLAlchemy; gives NoSpace, ReadOnly or DiskFailed where the
disk was the reason. Knows no tables.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from loramux_store.disk import free_bytes
from loramux_store.errors import DiskFailed, NoSpace, ReadOnly

__all__ = ["told"]

_DISK = {
    sqlite3.SQLITE_BUSY: "another process holds it",
    sqlite3.SQLITE_IOERR: "input/output error",
    sqlite3.SQLITE_CORRUPT: "the file is damaged",
    sqlite3.SQLITE_NOTADB: "the file is damaged",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened",
}


@contextmanager
def told(folder: Path) -> Generator[None]:
    """Raise what the disk did wrong as an error of the store; other errors are faults and stay as they are."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        code = _code(error)
        if code == sqlite3.SQLITE_FULL:
            raise NoSpace(0, free_bytes(folder)) from error
        if code == sqlite3.SQLITE_READONLY:
            raise ReadOnly("the catalog", "attempt to write a read-only database") from error
        if code in _DISK:
            raise DiskFailed("the catalog", _DISK[code]) from error
        raise


def _code(error: DBAPIError | sqlite3.Error) -> int:
    """SQLite's primary code (the upper bits say where in SQLite); 0 where Python's module itself complains."""
    cause: object = error.orig if isinstance(error, DBAPIError) else error
    code: int = getattr(cause, "sqlite_errorcode", 0)
    return code & 0xFF
