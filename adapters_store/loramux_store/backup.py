"""Backups of a store, taken while it is in use, and stores made of them.

A backup is a folder with the catalog, as it was at one moment, and the blobs that it speaks of, where a store has its
own. Compiled files are not in it, for they are made again when needed; nor are unfinished uploads.
Takes folders; gives counts, or DataLoss where a blob is not what its name says. Knows no records.

The catalog is copied first, and a blob is there before its row: so whatever is uploaded meanwhile, all that the copy
speaks of is there. It gets its name last: a folder with a catalog of that name is whole.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from loramux_store.blobs import Shelf
from loramux_store.disk import Disk, free_bytes, refuse_network
from loramux_store.errors import InvalidArgument, NoSpace
from loramux_store.sqlite_errors import told

__all__ = ["Copied", "back_up", "refuse_backup", "restore"]

_CATALOG = "catalog.sqlite3"
_BACKUP = "backup.sqlite3"  # another name, so that no backup is ever taken for a store, or written over one


@dataclass(frozen=True, slots=True)
class Copied:
    """How many adapters, deleted ones included, and blobs there are now, and which of those had to be copied."""

    adapters: int
    blobs: int
    new_blobs: int
    new_bytes: int


def back_up(store: Path, target: Path, disk: Disk | None = None) -> Copied:
    """Make the target a backup of a store, which may be in use. What an earlier backup left there is not copied again.

    Raises: InvalidArgument where there is no store, or the target is one; DataLoss where a blob is damaged, NoSpace
    where the target has no room: an earlier backup there then stays as it was.
    """
    if not (store / _CATALOG).is_file():
        raise InvalidArgument("store", str(store), "the folder of a store")
    if (target / _CATALOG).exists():
        raise InvalidArgument("target", str(target), "a folder of its own, not that of a store")
    return _copy(Shelf(store, Disk()), _CATALOG, Shelf(target, disk or Disk()), _BACKUP)


def restore(backup: Path, store: Path, disk: Disk | None = None) -> Copied:
    """Make a new store of a backup. Every blob is hashed on the way.

    Raises: InvalidArgument where there is no backup, or a store already; DataLoss, and no store, where a blob is
    damaged.
    """
    if not (backup / _BACKUP).is_file():
        raise InvalidArgument("backup", str(backup), "the folder of a backup")
    if any(store.glob(f"{_CATALOG}*")):  # a log beside a catalog would be played into the new one
        raise InvalidArgument("store", str(store), "a folder without a store: move the old one away first")
    store.mkdir(parents=True, exist_ok=True)
    refuse_network(store)
    return _copy(Shelf(backup, Disk()), _BACKUP, Shelf(store, disk or Disk()), _CATALOG)


def refuse_backup(folder: Path) -> None:
    """Raise InvalidArgument where the folder is a backup: opened as a store, it would lose its blobs as leftovers."""
    if (folder / _BACKUP).exists():
        raise InvalidArgument("store", str(folder), "the folder of a store; this is a backup, to make a store of")


def _copy(source: Shelf, catalog: str, target: Shelf, name: str) -> Copied:
    target.prepare()
    part = target.new_part()
    try:
        adapters, sizes = _copy_catalog(source.root / catalog, part)
        missing = [digest for digest, size in sizes.items() if not _is_there(target.blob(digest), size)]
        needed, free = sum(sizes[digest] for digest in missing), free_bytes(target.root)
        if needed > free:
            raise NoSpace(needed, free)
        for digest in missing:
            _copy_blob(source, target, digest, sizes[digest])
        target.disk.rename(part, target.root / name)
        target.disk.sync_folder(target.root)
    finally:
        target.drop(part)
    return Copied(adapters, len(sizes), len(missing), needed)


def _copy_catalog(source: Path, target: Path) -> tuple[int, dict[str, int]]:
    """The catalog as it is now, durably; how many adapters it has, and the size of every blob by its digest.

    One step of SQLite's backup: a reader, which in WAL mode holds up no writer and sees one moment.
    """
    with told(target.parent), closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(target)) as copy:
        copy.execute("PRAGMA synchronous = FULL")
        live.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, whole in itself
        (adapters,) = copy.execute("SELECT count(*) FROM adapters").fetchone()
        sizes: dict[str, int] = dict(copy.execute("SELECT digest, size_bytes FROM blobs ORDER BY digest").fetchall())
    return adapters, sizes


def _copy_blob(source: Shelf, target: Shelf, digest: str, size: int) -> None:
    part = target.new_part()
    try:
        with target.disk.create(part) as handle:
            for chunk in source.read_blob(digest, size, 0):
                target.disk.write(handle, chunk)
            target.disk.sync(handle)
        target.disk.publish(part, target.blob(digest))
    finally:
        target.drop(part)


def _is_there(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False
