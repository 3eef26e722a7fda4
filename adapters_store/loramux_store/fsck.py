"""Does the shelf hold what the catalog says?

Takes a store's parts; gives Findings, and mends what can be mended: compiled files are made again, files of no row
removed, damaged blobs moved to `quarantine/`, where they stay until somebody deletes them. A version whose blob is
there keeps serving while its compiled file is whole.

Safe beside a running server: what is read is never written in place, what is moved or removed is looked at again while
the catalog is locked, and no upload gets a name outside the catalog's transactions. Knows no formats.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from loramux_store.blobs import Shelf, sha256_of
from loramux_store.catalog import Catalog
from loramux_store.census import Counted
from loramux_store.compiled_file import MAX_FILE
from loramux_store.errors import Refused, StoreError
from loramux_store.header import read_container
from loramux_store.record import Finding
from loramux_store.seal import is_unbroken
from loramux_store.uploads import Uploads

if TYPE_CHECKING:
    from loramux_store.store import Store

__all__ = ["inspect"]


def inspect(
    store: Store, catalog: Catalog, shelf: Shelf, uploads: Uploads, *, full: bool, repair: bool
) -> tuple[Finding, ...]:
    """Everything that is not as it should be; see docs/tools.md for the codes."""
    check = _Check(store, catalog, shelf, uploads, full, repair)
    return (*check.catalog_faults(), *check.versions(), *check.leftovers())


class _Check:
    def __init__(
        self, store: Store, catalog: Catalog, shelf: Shelf, uploads: Uploads, full: bool, repair: bool
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._shelf = shelf
        self._uploads = uploads
        self._full = full
        self._repair = repair
        self._blobs: dict[str, tuple[str, str]] = {}

    def catalog_faults(self) -> Iterator[Finding]:
        for fault in self._catalog.faults():
            yield Finding("catalog_damaged", "catalog.sqlite3", fault, lost=True)

    def versions(self) -> Iterator[Finding]:
        for version in self._catalog.census():
            code, detail = self._blob(version)
            if code:
                yield Finding(code, version.ref, detail, lost=True)
            # one of a deleted adapter is made again when the adapter comes back
            if not version.deleted and (fault := self._compiled_fault(version)):
                yield self._made_again(version, fault)

    def leftovers(self) -> Iterator[Finding]:
        """Of what crashes and abandoned uploads leave."""
        for name, size in self._uploads.idle().items():
            yield Finding("leftover", f"uploads/{name}", f"{size} bytes of an abandoned upload", mended=self._repair)
        if self._repair:
            self._uploads.expire()
        before = self._catalog.listed()
        unlisted = [file for file in self._shelf.files() if not before.has(file)]
        with self._catalog.locked() as listed:
            orphans = [(file.path, self._shelf.size(file.path)) for file in unlisted if not listed.has(file)]
            for path, _ in orphans if self._repair else ():
                self._shelf.discard(path)
        for path, size in orphans:
            yield Finding("orphan", self._shelf.relative(path), f"{size} bytes of no version", mended=self._repair)

    def _blob(self, version: Counted) -> tuple[str, str]:
        """(code, detail) of the blob, empty where it is right. Versions share blobs: each is looked at once."""
        digest = version.blob_digest
        if digest not in self._blobs:
            code, detail = self._blob_fault(digest, version.size_bytes)
            if code in ("blob_size", "blob_damaged") and self._repair:
                detail += f"; {self._quarantine(digest, version.size_bytes)}"
            self._blobs[digest] = code, detail
        return self._blobs[digest]

    def _blob_fault(self, digest: str, size: int) -> tuple[str, str]:
        path = self._shelf.blob(digest)
        try:
            found = path.stat().st_size
            if found != size:
                return "blob_size", f"blob {digest} has {found} bytes, expected {size}"
            if self._full and (sha256 := sha256_of(path)) != digest:
                return "blob_damaged", f"blob {digest} now has sha256 {sha256}"
        except FileNotFoundError:
            kept = self._shelf.quarantine / digest
            where = f"; damaged bytes are kept as {self._shelf.relative(kept)}" if kept.exists() else ""
            return "blob_missing", f"blob {digest} is gone{where}"
        except OSError as error:
            return "blob_unreadable", f"blob {digest}: {error.strerror}"
        return "", ""

    def _quarantine(self, digest: str, size: int) -> str:
        """Nothing is thrown away: some of it may be of use to whoever has lost it."""
        with self._catalog.locked():  # an upload of the right bytes may just have healed it
            if not self._blob_fault(digest, size)[0]:
                return "healed meanwhile"
            kept = self._shelf.set_aside(digest)
        return f"moved to {self._shelf.relative(kept)}"

    def _compiled_fault(self, version: Counted) -> str:
        path = self._shelf.compiled_file(version.layout_digest, version.digest)
        if not path.exists():
            return "compiled_missing"
        return "compiled_damaged" if _is_broken(path, self._full) else ""

    def _made_again(self, version: Counted, fault: str) -> Finding:
        path = self._shelf.relative(self._shelf.compiled_file(version.layout_digest, version.digest))
        if not self._repair:
            return Finding(fault, version.ref, path)
        try:
            self._store.compiled(self._store.resolve(version.ref))
        except StoreError as error:
            return Finding(fault, version.ref, f"{path} cannot be made again: {error}", lost=True)
        return Finding(fault, version.ref, path, mended=True)


def _is_broken(path: Path, full: bool) -> bool:
    """By its header and size; in full by its seal too."""
    try:
        read_container(path, MAX_FILE)
        return full and not is_unbroken(path)
    except (Refused, OSError):
        return True
