"""What nobody needs any more: adapters deleted long ago, and files of no version.

Takes the catalog, the shelf and the uploads; gives a Collected, and removes what it tells. Rows go before files, so a
crash between leaves files that the next run takes. Files get their names and rows in one transaction, so within
another no upload of any process is half way. Knows no formats.
"""

from __future__ import annotations

import time

from loramux_store.blobs import Shelf
from loramux_store.catalog import Catalog
from loramux_store.errors import InvalidArgument
from loramux_store.record import Collected
from loramux_store.uploads import Uploads

__all__ = ["collect"]


def collect(catalog: Catalog, shelf: Shelf, uploads: Uploads, grace_s: float, who: str, *, dry_run: bool) -> Collected:
    """Remove, or with dry_run tell what would be removed; who: for the audit log, of a run that removes something.

    Raises InvalidArgument for a negative grace.
    """
    if not 0 <= grace_s < float("inf"):
        raise InvalidArgument("grace", grace_s, "seconds, 0 or more")
    adapters, listed = catalog.forget(int((time.time() - grace_s) * 1_000_000), who, dry_run=dry_run)
    files = [(f"uploads/{name}", size) for name, size in uploads.idle().items()]
    unlisted = [file for file in shelf.files() if not listed.has(file)]
    if dry_run:
        files += [(shelf.relative(file.path), shelf.size(file.path)) for file in unlisted]
        return Collected(tuple(adapters), tuple(files))
    uploads.expire()
    with catalog.locked() as now:
        files += [(shelf.relative(file.path), shelf.discard(file.path)) for file in unlisted if not now.has(file)]
    gone = Collected(tuple(adapters), tuple(files))
    if adapters or files:
        catalog.note(who, "gc", f"adapters: {len(adapters)}, files: {len(files)}, bytes: {gone.bytes}")
    return gone
