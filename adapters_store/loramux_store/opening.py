"""Whether a store could be opened or made in a folder, without doing either.

Takes a folder; gives nothing, or the error that `Store.open` would raise. It makes an empty folder there, or in the
nearest folder above that exists, and removes it again: only a try tells whether the disk lets it. Knows no records.
"""

from __future__ import annotations

import uuid
from contextlib import closing
from pathlib import Path

from loramux_store.backup import refuse_backup
from loramux_store.disk import Disk, refuse_network
from loramux_store.schema import open_engine, refuse_newer
from loramux_store.sqlite_errors import told

__all__ = ["refuse_unusable"]


def refuse_unusable(root: Path) -> None:
    """Raise what opening would: a backup, a network's disk, one that takes nothing, a catalog that cannot be read.

    Raises: StoreError.
    """
    root = root.absolute()
    refuse_backup(root)
    refuse_network(root)
    _try_to_write(next(folder for folder in (root, *root.parents) if folder.exists()))
    catalog = root / "catalog.sqlite3"
    if catalog.exists():
        engine = open_engine(catalog)
        try:
            with told(root), closing(engine.connect()) as connection:
                refuse_newer(connection)
        finally:
            engine.dispose()


def _try_to_write(folder: Path) -> None:
    made = folder / f"tried-{uuid.uuid4().hex}"
    Disk().make_folder(made)
    made.rmdir()
