"""The rows: what is on the shelf, in which versions.

Takes and gives records; every write is one transaction. Knows SQL, and nothing of files or
tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from loramux_store.blobs import StoredFile
from loramux_store.catalog_rows import (
    NewVersion,
    adapter_of,
    insert_adapter,
    insert_layout,
    insert_version,
    is_latest,
    now_us,
    time_of,
    update_adapter,
    version_of,
)
from loramux_store.census import Counted, faults, forget, take_census
from loramux_store.errors import NotFound
from loramux_store.layout import Layout
from loramux_store.names import Ref
from loramux_store.record import AdapterRecord, UploadSpec, VersionRecord
from loramux_store.schema import adapters, blobs, layouts, migrate, open_engine, versions
from loramux_store.sqlite_errors import told

__all__ = ["Catalog", "Listed", "NewVersion"]

_VERSION_COLUMNS = (
    versions,
    blobs.c.size_bytes,
    layouts.c.name.label("layout_name"),
)
_JOINED = versions.join(blobs, versions.c.blob_digest == blobs.c.digest).join(
    layouts, versions.c.layout_digest == layouts.c.digest
)


@dataclass(frozen=True, slots=True)
class Listed:
    """Digests of blobs, and (layout digest, digest) of versions, deleted adapters' too."""

    blobs: frozenset[str]
    versions: frozenset[tuple[str, str]]

    def has(self, file: StoredFile) -> bool:
        """Whether a row speaks of the file."""
        return file.digest in self.blobs if file.layout is None else (file.layout, file.digest) in self.versions


class Catalog:
    """The SQLite file. Readers run beside the one writer; a lock queues the writers."""

    def __init__(self, path: Path) -> None:
        self._engine = open_engine(path)
        self._folder = path.parent
        self._write_lock = threading.Lock()
        try:
            with told(self._folder):
                migrate(self._engine)
        except BaseException:
            self._engine.dispose()
            raise

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    # -- layouts -----------------------------------------------------------------------------

    def add_layout(self, layout: Layout) -> None:
        """Remember a layout; one of the same digest keeps its first name."""
        with self._writing() as connection:
            insert_layout(connection, layout, now_us())

    def layouts(self) -> tuple[Layout, ...]:
        """All remembered layouts, the newest first."""
        query = sa.select(layouts.c.body).order_by(layouts.c.create_us.desc(), layouts.c.digest)
        with self._reading() as connection:
            return tuple(Layout.from_json(body) for body in connection.scalars(query))

    # -- versions ----------------------------------------------------------------------------

    def add_version(self, spec: UploadSpec, new: NewVersion, place: Callable[[], None]) -> tuple[VersionRecord, bool]:
        """Add a version to spec.name; False if the latest one is the same already.

        place: gives the version's files their names. It is called inside the transaction, so that
        whoever holds `locked` never sees a file whose row is still to come.
        """
        with self._writing() as connection:
            place()
            now = now_us()
            row = connection.execute(sa.select(adapters).where(adapters.c.name == spec.name)).one_or_none()
            same = row is not None and is_latest(connection, row, new)
            if row is None:
                adapter_id, number = insert_adapter(connection, spec, now), 1
            else:
                adapter_id, number = row.id, row.latest + (not same)
                update_adapter(connection, row, spec, number, now, same)
            if not same:
                insert_version(connection, adapter_id, number, new, now)
            found = _select_version(connection, spec.name, number)
        return version_of(found), not same

    def version(self, ref: Ref) -> VersionRecord:
        """A version of an adapter that is not deleted; the latest without a number."""
        with self._reading() as connection:
            row = _live(connection, ref.name)
            number = row.latest if ref.number is None else ref.number
            found = _select_version(connection, ref.name, number)
        if found is None:
            raise NotFound(
                f"{ref.name}@{ref.number}",
                f"adapter {ref.name!r} has no version {ref.number}; its latest is {row.latest}",
            )
        return version_of(found)

    def versions(self, name: str, count: int, below: int | None) -> list[VersionRecord]:
        """Versions of a live adapter, newest first, with numbers below `below`."""
        query = (
            sa.select(*_VERSION_COLUMNS, adapters.c.name.label("adapter"))
            .select_from(_JOINED.join(adapters, adapters.c.id == versions.c.adapter_id))
            .where(adapters.c.name == name)
            .order_by(versions.c.number.desc())
            .limit(count)
        )
        if below is not None:
            query = query.where(versions.c.number < below)
        with self._reading() as connection:
            _live(connection, name)
            return [version_of(row) for row in connection.execute(query)]

    # -- adapters ----------------------------------------------------------------------------

    def adapter(self, name: str) -> AdapterRecord:
        """A live adapter."""
        with self._reading() as connection:
            _live(connection, name)
            return adapter_of(connection.execute(_adapters().where(adapters.c.name == name)).one())

    def adapters(self, count: int, after: str) -> list[AdapterRecord]:
        """Live adapters by name, those after `after`."""
        query = _adapters().where(adapters.c.delete_us.is_(None), adapters.c.name > after)
        with self._reading() as connection:
            rows = connection.execute(query.order_by(adapters.c.name).limit(count))
            return [adapter_of(row) for row in rows]

    def delete(self, name: str) -> AdapterRecord:
        """Hide an adapter; its versions stay where they are."""
        with self._writing() as connection:
            _live(connection, name)
            now = now_us()
            connection.execute(adapters.update().where(adapters.c.name == name).values(delete_us=now, update_us=now))
            return adapter_of(connection.execute(_adapters().where(adapters.c.name == name)).one())

    def counts(self) -> tuple[int, int, int, int]:
        """(live adapters, their versions, blobs, bytes of the blobs)."""
        live = adapters.c.delete_us.is_(None)
        with self._reading() as connection:
            named = connection.scalar(sa.select(sa.func.count()).select_from(adapters).where(live))
            numbered = connection.scalar(
                sa.select(sa.func.count())
                .select_from(versions.join(adapters, adapters.c.id == versions.c.adapter_id))
                .where(live)
            )
            held, size = connection.execute(
                sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(blobs.c.size_bytes), 0))
            ).one()
        return named or 0, numbered or 0, held, size

    def has_blob(self, digest: str | None) -> bool:
        """Whether a version has those bytes."""
        with self._reading() as connection:
            return connection.scalar(sa.select(blobs.c.digest).where(blobs.c.digest == digest)) is not None

    def listed(self) -> Listed:
        """What the rows speak of now."""
        with self._reading() as connection:
            return _listed(connection)

    def census(self) -> list[Counted]:
        """Every version, deleted adapters' too."""
        with self._reading() as connection:
            return take_census(connection)

    def faults(self) -> list[str]:
        """What is wrong with the file or between its rows."""
        with self._reading() as connection:
            return faults(connection)

    def forget(self, before_us: int, *, dry_run: bool) -> tuple[list[str], Listed]:
        """Remove the rows of adapters deleted before a time; their names, and what the other rows speak of."""
        with self._writing() as connection, connection.begin_nested() as step:
            gone, left = forget(connection, before_us), _listed(connection)
            if dry_run:
                step.rollback()
        return gone, left

    @contextmanager
    def locked(self) -> Generator[Listed]:
        """What the rows speak of, while nobody adds to them."""
        with self._writing() as connection:
            yield _listed(connection)

    @contextmanager
    def _reading(self) -> Generator[sa.Connection]:
        with told(self._folder), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def _writing(self) -> Generator[sa.Connection]:
        with (
            told(self._folder),
            self._write_lock,
            self._engine.connect().execution_options(write=True) as connection,
            connection.begin(),
        ):
            yield connection


def _listed(connection: sa.Connection) -> Listed:
    known = connection.execute(sa.select(versions.c.layout_digest, versions.c.digest).distinct())
    return Listed(
        frozenset(connection.scalars(sa.select(blobs.c.digest))),
        frozenset((row.layout_digest, row.digest) for row in known),
    )


def _adapters() -> sa.Select[Any]:
    columns = [column.label(f"adapter_{column.name}") for column in adapters.c]
    joined = _JOINED.join(
        adapters,
        sa.and_(adapters.c.id == versions.c.adapter_id, adapters.c.latest == versions.c.number),
    )
    return sa.select(*_VERSION_COLUMNS, adapters.c.name.label("adapter"), *columns).select_from(joined)


def _select_version(connection: sa.Connection, name: str, number: int) -> Any:
    query = (
        sa.select(*_VERSION_COLUMNS, adapters.c.name.label("adapter"))
        .select_from(_JOINED.join(adapters, adapters.c.id == versions.c.adapter_id))
        .where(adapters.c.name == name, versions.c.number == number)
    )
    return connection.execute(query).one_or_none()


def _live(connection: sa.Connection, name: str) -> Any:
    row = connection.execute(sa.select(adapters).where(adapters.c.name == name)).one_or_none()
    if row is None:
        raise NotFound(name)
    if row.delete_us is not None:
        raise NotFound(name, f"adapter {name!r} was deleted at {time_of(row.delete_us).isoformat()}")
    return row
