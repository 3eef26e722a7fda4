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
from loramux_store.catalog_queries import (
    Key,
    adapter_page,
    adapter_query,
    event_page,
    pin_query,
    report_query,
    version_page,
    version_query,
)
from loramux_store.catalog_records import adapter_of, etag_of, event_of, reference, summary_of, time_of, version_of
from loramux_store.catalog_rows import (
    NewVersion,
    change_adapter,
    correct_reports,
    insert_adapter,
    insert_event,
    insert_layout,
    insert_version,
    is_latest,
    now_us,
    set_pin,
    upload_again,
    write_search,
)
from loramux_store.census import Counted, faults, forget, take_census
from loramux_store.errors import Changed, DiskFailed, NoSpace, NotFound
from loramux_store.layout import Layout
from loramux_store.names import Ref
from loramux_store.record import (
    AcceptReport,
    AdapterChange,
    AdapterRecord,
    AuditEvent,
    Pin,
    Tier,
    UploadSpec,
    VersionRecord,
    VersionSummary,
)
from loramux_store.report_json import report_from_json
from loramux_store.schema import adapters, aliases, blobs, layouts, migrate, open_engine, versions
from loramux_store.selection import Selection
from loramux_store.sqlite_errors import told

__all__ = ["Catalog", "Listed", "NewVersion"]


@dataclass(frozen=True, slots=True)
class Listed:
    """Digests of blobs, and (layout digest, digest) of versions, deleted adapters' too."""

    blobs: frozenset[str]
    versions: frozenset[tuple[str, str]]

    def has(self, file: StoredFile) -> bool:
        """Whether a row speaks of the file."""
        return file.digest in self.blobs if file.layout is None else (file.layout, file.digest) in self.versions


class Catalog:
    """The SQLite file. Readers run beside the one writer; a lock queues the writers. refused: whether the disk has
    let a write fail since somebody set that back."""

    def __init__(self, path: Path) -> None:
        self._engine = open_engine(path)
        self.refused = False
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

    def add_version(
        self, spec: UploadSpec, new: NewVersion, who: str, place: Callable[[], None]
    ) -> tuple[VersionRecord, bool]:
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
                adapter_id, number, changed = insert_adapter(connection, spec, now), 1, ""
            else:
                adapter_id, number = row.id, row.latest + (not same)
                changed = upload_again(connection, row, spec, number, now)
            if not same:
                insert_version(connection, adapter_id, number, new, now)
            if new.embedding is None:
                correct_reports(connection, new.digest, new.layout.digest, new.report)
            if changed is not None:
                write_search(connection, adapter_id)
                insert_event(connection, now, who, "upload", spec.name, number, changed)
            found = connection.execute(version_query(spec.name, number)).one()
        return version_of(found), not same

    def correct(self, version: VersionRecord, report: str) -> None:
        """Another report of all versions that share a compiled file."""
        with self._writing() as connection:
            correct_reports(connection, version.digest, version.layout_digest, report)

    def version(self, ref: Ref) -> VersionRecord:
        """A version of an adapter that is not deleted; the latest with neither number nor alias."""
        with self._reading() as connection:
            row = _live(connection, ref.name)
            number = row.latest if ref.number is None else ref.number
            if ref.alias is not None:
                number = _aliased(connection, row, ref.alias)
            found = connection.execute(version_query(ref.name, number)).one_or_none()
        if found is None:
            raise NotFound(
                f"{ref.name}@{number}",
                f"adapter {ref.name!r} has no version {number}; its latest is {row.latest}",
            )
        return version_of(found)

    def versions(self, name: str, count: int, below: int | None) -> list[VersionSummary]:
        """Versions of a live adapter, newest first, with numbers below `below`."""
        with self._reading() as connection:
            _live(connection, name)
            return [summary_of(row) for row in connection.execute(version_page(name, count, below))]

    # -- adapters ----------------------------------------------------------------------------

    def adapter(self, name: str) -> AdapterRecord:
        """A live adapter."""
        with self._reading() as connection:
            _live(connection, name)
            return _adapter(connection, name)

    def adapters(self, selection: Selection, count: int, after: Key | None) -> list[AdapterRecord]:
        """The adapters of a selection, those after a key."""
        with self._reading() as connection:
            return [adapter_of(row) for row in connection.execute(adapter_page(selection, count, after))]

    def change(self, name: str, change: AdapterChange, etag: str, who: str) -> AdapterRecord:
        """Say anew what an owner says of a live adapter."""
        with self._writing() as connection:
            row, now = _live(connection, name), now_us()
            _check_etag(row, etag)
            changed = change_adapter(connection, row, change, now)
            if changed is not None:
                write_search(connection, row.id)
                insert_event(connection, now, who, "update", name, detail=changed)
            return _adapter(connection, name)

    def delete(self, name: str, etag: str, who: str) -> AdapterRecord:
        """Hide an adapter; its versions stay where they are."""
        with self._writing() as connection:
            row, now = _live(connection, name), now_us()
            _check_etag(row, etag)
            return _set_deleted(connection, row, now, who, "delete", now)

    def undelete(self, name: str, etag: str, who: str) -> AdapterRecord:
        """Show a deleted adapter again; one that is not deleted stays as it is."""
        with self._writing() as connection:
            row = _row(connection, name)
            _check_etag(row, etag)
            if row.delete_us is None:
                return _adapter(connection, name)
            return _set_deleted(connection, row, None, who, "undelete", now_us())

    def set_pin(self, ref: Ref, tier: Tier | None, who: str) -> AdapterRecord:
        """Pin a reference of a live adapter; None: do so no longer."""
        with self._writing() as connection:
            row, now = _live(connection, ref.name), now_us()
            changed = set_pin(connection, row, ref, tier, now)
            if changed is not None:
                insert_event(connection, now, who, "unpin" if tier is None else "pin", ref.name, detail=changed)
            return _adapter(connection, ref.name)

    def pins(self) -> list[Pin]:
        """Of all live adapters, the oldest first."""
        with self._reading() as connection:
            return [Pin(reference(row.name, row.at), row.tier) for row in connection.execute(pin_query())]

    def events(self, name: str, count: int, below: int | None) -> list[tuple[int, AuditEvent]]:
        """The audit log of an adapter, of all where the name is empty: ids and events, the newest first."""
        with self._reading() as connection:
            return [(row.id, event_of(row)) for row in connection.execute(event_page(name, count, below))]

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

    def report_on(self, blob_digest: str, layout_digest: str) -> AcceptReport | None:
        """What was found in those bytes for that layout, where a version has them; deleted adapters' too."""
        with self._reading() as connection:
            found = connection.scalar(report_query(blob_digest, layout_digest))
        return None if found is None else report_from_json(found)

    def listed(self) -> Listed:
        """What the rows speak of now."""
        with self._reading() as connection:
            return _listed(connection)

    def census(self) -> list[Counted]:
        """Every version, deleted adapters' too."""
        with self._reading() as connection:
            return take_census(connection)

    def faults(self, *, quick: bool = False) -> list[str]:
        """What is wrong with the file or between its rows; quick: as far as a look at the rows tells."""
        with self._reading() as connection:
            return faults(connection, quick=quick)

    def forget(self, before_us: int, who: str, *, dry_run: bool) -> tuple[list[str], Listed]:
        """Remove the rows of adapters deleted before a time; their names, and what the other rows speak of."""
        with self._writing() as connection, connection.begin_nested() as step:
            gone, left, now = forget(connection, before_us), _listed(connection), now_us()
            for name, size in gone.items():
                insert_event(connection, now, who, "purge", name, detail=size)
            if dry_run:
                step.rollback()
        return list(gone), left

    def note(self, who: str, action: str, detail: str) -> None:
        """Something of no single adapter, for the audit log."""
        with self._writing() as connection:
            insert_event(connection, now_us(), who, action, "", detail=detail)

    def try_write(self) -> None:
        """Commits a page that says what it said before; raises what the disk says to that."""
        with self._writing() as connection:
            connection.exec_driver_sql("PRAGMA user_version = 0")

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
        try:
            with (
                told(self._folder),
                self._write_lock,
                self._engine.connect().execution_options(write=True) as connection,
                connection.begin(),
            ):
                yield connection
        except (NoSpace, DiskFailed):
            self.refused = True
            raise


def _listed(connection: sa.Connection) -> Listed:
    known = connection.execute(sa.select(versions.c.layout_digest, versions.c.digest).distinct())
    return Listed(
        frozenset(connection.scalars(sa.select(blobs.c.digest))),
        frozenset((row.layout_digest, row.digest) for row in known),
    )


def _adapter(connection: sa.Connection, name: str) -> AdapterRecord:
    return adapter_of(connection.execute(adapter_query().where(adapters.c.name == name)).one())


def _row(connection: sa.Connection, name: str) -> Any:
    row = connection.execute(sa.select(adapters).where(adapters.c.name == name)).one_or_none()
    if row is None:
        raise NotFound(name)
    return row


def _live(connection: sa.Connection, name: str) -> Any:
    row = _row(connection, name)
    if row.delete_us is not None:
        raise NotFound(name, f"adapter {name!r} was deleted at {time_of(row.delete_us).isoformat()}")
    return row


def _aliased(connection: sa.Connection, row: Any, alias: str) -> int:
    query = sa.select(aliases.c.alias, aliases.c.number).where(aliases.c.adapter_id == row.id)
    found = {each.alias: each.number for each in connection.execute(query)}
    if alias not in found:
        known = ", ".join(sorted(found)) or "none"
        raise NotFound(f"{row.name}@{alias}", f"adapter {row.name!r} has no alias {alias!r}; it has {known}")
    return found[alias]


def _check_etag(row: Any, etag: str) -> None:
    """An empty one means: whatever it is like."""
    if etag and etag != (current := etag_of(row.create_us, row.revision)):
        raise Changed(row.name, etag, current)


def _set_deleted(
    connection: sa.Connection, row: Any, deleted: int | None, who: str, action: str, now: int
) -> AdapterRecord:
    values = {"delete_us": deleted, "update_us": now, "revision": row.revision + 1}
    connection.execute(adapters.update().where(adapters.c.id == row.id).values(values))
    insert_event(connection, now, who, action, row.name)
    return _adapter(connection, row.name)
