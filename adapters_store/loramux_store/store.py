"""The store: adapters come in as files and are kept, listed and handed out.

Takes upload specs, bytes and names; gives records, reports and paths, never live tensors.
Synchronous and thread-safe. Knows no server, no gRPC and no kernels.

The way of an upload, each step durable before the next: part file -> sha256 -> container check -> layout
and scales -> compiled file -> blob -> catalog row. A crash leaves the version whole, or leftovers.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from loramux_store import compiled_embedding
from loramux_store.blobs import READ_CHUNK, Shelf
from loramux_store.catalog import Catalog, NewVersion
from loramux_store.collecting import collect
from loramux_store.compiled_file import is_current
from loramux_store.conversion import convert, planned
from loramux_store.disk import Disk, free_bytes, refuse_network
from loramux_store.errors import Closed, InvalidArgument, NotFound, UploadNotFound
from loramux_store.formats.embedding import EmbeddingPlan
from loramux_store.formats.plan import Plan
from loramux_store.fsck import inspect
from loramux_store.header import read_container
from loramux_store.layout import KNOWN_NAMES, Layout, known_layout, known_layouts
from loramux_store.names import Ref, check_name, parse_ref
from loramux_store.paging import check_page_size, read_token, write_token
from loramux_store.record import (
    AcceptReport,
    AdapterRecord,
    Collected,
    Finding,
    Page,
    Published,
    Reclaimed,
    StoreStats,
    UploadSpec,
    VersionRecord,
)
from loramux_store.report_json import options_to_json, report_to_json, version_digest
from loramux_store.room import Limits, check_room
from loramux_store.sniff import MAX_FILE
from loramux_store.upload import Upload, check_spec
from loramux_store.uploads import Unfinished, Uploads

__all__ = ["Store"]

T = TypeVar("T")

UPLOAD_IDLE_S = 24 * 3600.0


class Store:
    """An open store. Use `Store.open`."""

    def __init__(self, shelf: Shelf, catalog: Catalog, uploads: Uploads, limits: Limits) -> None:
        self._shelf = shelf
        self._catalog = catalog
        self._uploads = uploads
        self._limits = limits
        self._closed = False

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        max_file_bytes: int = MAX_FILE,
        quota_bytes: int | None = None,
        upload_idle_s: float = UPLOAD_IDLE_S,
        disk: Disk | None = None,
    ) -> Store:
        """Open or create the store in a folder of a local disk.

        quota_bytes: most bytes of blobs, uploads on their way included. upload_idle_s: an upload
        untouched for longer is thrown away.
        """
        shelf = Shelf(Path(root).absolute(), disk or Disk())
        shelf.prepare()
        refuse_network(shelf.root)
        catalog = Catalog(shelf.root / "catalog.sqlite3")
        uploads = Uploads(shelf.uploads, shelf.disk, upload_idle_s)
        return cls(shelf, catalog, uploads, Limits(max_file_bytes, quota_bytes))

    def close(self) -> None:
        """Close the catalog; later calls raise Closed."""
        if not self._closed:
            self._closed = True
            self._catalog.close()

    def __enter__(self) -> Store:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close."""
        self.close()

    # -- layouts -----------------------------------------------------------------------------

    def register_layout(self, layout: Layout) -> None:
        """Make a base's layout known, now and after a restart."""
        if layout.name in KNOWN_NAMES and layout.digest != known_layout(layout.name).digest:
            raise InvalidArgument("layout.name", layout.name, "a name not of a known layout")
        self._open_catalog().add_layout(layout)

    def layouts(self) -> tuple[Layout, ...]:
        """Every layout there is: the known ones, then those registered, the newest first."""
        known = {layout.digest: layout for layout in known_layouts()}
        more = self._open_catalog().layouts()
        return (*known.values(), *(layout for layout in more if layout.digest not in known))

    def layout(self, name_or_digest: str) -> Layout:
        """A layout by its name or digest."""
        for layout in self.layouts():
            if name_or_digest in (layout.name, layout.digest):
                return layout
        names = ", ".join(sorted({layout.name for layout in self.layouts()}))
        raise InvalidArgument("layout", name_or_digest, f"one of {names}, or a layout's digest")

    # -- uploads -----------------------------------------------------------------------------

    def begin_upload(self, spec: UploadSpec, upload_id: str | None = None, offset: int | None = None) -> Upload:
        """Begin an upload, or go on with the one of that id, which has the same spec.

        offset: where in the file the next byte belongs; WrongOffset where that is elsewhere. Whether
        there is room is asked of the size announced, before any byte is taken. An id whose upload was
        published begins anew.
        """
        self._open_catalog()
        spec = check_spec(spec)
        if spec.layout is not None:
            self.layout(spec.layout)
        key = uuid.uuid4().hex if upload_id is None else upload_id
        part = self._uploads.open(key, spec, offset, lambda: self._check_room(spec))
        return Upload(
            key,
            spec,
            part,
            self._uploads,
            self._shelf.disk,
            self._limits.file_bytes,
            self._finish,
            resumable=upload_id is not None,
        )

    def find_upload(self, upload_id: str) -> Unfinished | Published:
        """How far an upload has come, or what it became."""
        catalog = self._open_catalog()
        found = self._uploads.find(upload_id)
        if isinstance(found, Unfinished):
            return found
        try:
            version = catalog.version(Ref(found.adapter, found.number))
        except NotFound as error:  # deleted since
            raise UploadNotFound(upload_id) from error
        return Published(version, version.report, found.created)

    def abort_upload(self, upload_id: str) -> None:
        """Throw away what came of an upload; UploadBusy while somebody writes to it."""
        self._open_catalog()
        self._uploads.remove(upload_id)

    def _check_room(self, spec: UploadSpec) -> None:
        catalog, limits = self._open_catalog(), self._limits
        if spec.validate_only or catalog.has_blob(spec.sha256):  # such bytes do not stay
            limits = replace(limits, quota_bytes=None)
        free, held = free_bytes(self._shelf.uploads), catalog.counts()[3]
        check_room(spec.size_bytes or 0, limits, self._uploads.reserved(), free, held)

    def publish(self, path: Path, spec: UploadSpec) -> Published:
        """Upload a local file, which stays where it is."""
        spec = replace(spec, size_bytes=Path(path).stat().st_size if spec.size_bytes is None else spec.size_bytes)
        with Path(path).open("rb") as source, self.begin_upload(spec) as upload:
            while chunk := source.read(READ_CHUNK):
                upload.write(chunk)
            return upload.commit()

    def _finish(self, upload: Upload, blob_digest: str) -> Published:
        spec = upload.spec
        plan = self._plan(upload.path, spec)
        options, embedding = spec.options, plan.report.embedding
        if embedding is not None:
            options = replace(options, trigger=embedding.trigger)
        if spec.validate_only:
            warnings = convert(plan, len)
            return Published(None, _warned(plan.report, warnings), created=False)
        digest = version_digest(blob_digest, options)
        compiled = self._shelf.new_part()
        try:
            report = _warned(plan.report, self._write_compiled(plan, compiled))
            upload.sync()
            new = NewVersion(
                digest=digest,
                blob_digest=blob_digest,
                size_bytes=upload.received,
                layout=plan.layout,
                kind="lora" if embedding is None else "embedding",
                options=options_to_json(options),
                report=report_to_json(report),
            )
            version, created = self._open_catalog().add_version(spec, new, lambda: self._place(upload, compiled, new))
        finally:
            self._shelf.drop(compiled)
        return Published(version, report, created)

    def _place(self, upload: Upload, compiled: Path, new: NewVersion) -> None:
        disk = self._shelf.disk
        disk.publish(upload.path, self._shelf.blob(new.blob_digest))
        disk.publish(compiled, self._shelf.compiled_file(new.layout.digest, new.digest))

    def _plan(self, path: Path, spec: UploadSpec) -> Plan | EmbeddingPlan:
        container = read_container(path, self._limits.file_bytes)
        wanted = self.layout(spec.layout) if spec.layout is not None else None
        return planned(container, spec.options, spec.name, self.layouts(), wanted)

    def _write_compiled(self, plan: Plan | EmbeddingPlan, part: Path) -> tuple[str, ...]:
        disk, digest = self._shelf.disk, hashlib.sha256()
        with disk.create(part) as handle:

            def write(data: memoryview) -> None:
                digest.update(data)
                disk.write(handle, data)

            warnings = convert(plan, write)
            disk.write(handle, digest.digest())
            disk.sync(handle)
        return warnings

    # -- reading -----------------------------------------------------------------------------

    def resolve(self, ref: str) -> VersionRecord:
        """The version that `name` or `name@3` means now."""
        parsed = parse_ref(ref)
        if parsed.alias is not None:
            raise NotFound(ref, f"{ref!r}: there are no aliases yet; use a version number")
        return self._open_catalog().version(parsed)

    def read_blob(self, version: VersionRecord, offset: int = 0) -> Generator[bytes]:
        """The bytes that were uploaded, from offset on. DataLoss, at the end at the latest, if they are others now."""
        self._open_catalog()
        if not 0 <= offset <= version.size_bytes:
            raise InvalidArgument("offset", offset, f"0 to {version.size_bytes}, the size of the file")
        return self._shelf.read_blob(version.blob_digest, version.size_bytes, offset)

    def get_adapter(self, name: str) -> AdapterRecord:
        """An adapter that is not deleted."""
        return self._open_catalog().adapter(check_name(name))

    def list_adapters(self, page_size: int, page_token: str = "") -> Page[AdapterRecord]:
        """Adapters by name."""
        size = check_page_size(page_size)
        after = read_token(page_token, "adapters", str) or ""
        rows = self._open_catalog().adapters(size + 1, after)
        return _page(rows, size, "adapters", lambda record: record.name)

    def list_versions(self, name: str, page_size: int, page_token: str = "") -> Page[VersionRecord]:
        """Versions of an adapter, the newest first."""
        size = check_page_size(page_size)
        listing = f"versions of {check_name(name)}"
        below = read_token(page_token, listing, int)
        rows = self._open_catalog().versions(name, size + 1, below)
        return _page(rows, size, listing, lambda record: record.number)

    def delete_adapter(self, name: str) -> AdapterRecord:
        """Hide an adapter. Running images keep its version; an upload brings the name back."""
        return self._open_catalog().delete(check_name(name))

    def reclaim(self) -> Reclaimed:
        """Remove idle uploads and what crashes left: part files, and blobs and compiled files that no row speaks of.

        Safe beside uploads, of other processes too: a file gets its name and its row in one
        transaction, and what is removed here is looked at again within another.
        """
        catalog = self._open_catalog()
        before = catalog.listed()
        gone = self._uploads.expire()
        unlisted = [file for file in self._shelf.files() if not before.has(file)]
        if unlisted:
            with catalog.locked() as listed:
                gone += [self._shelf.discard(file.path) for file in unlisted if not listed.has(file)]
        return Reclaimed(len(gone), sum(gone))

    def gc(self, grace_s: float, *, dry_run: bool = False) -> Collected:
        """Remove adapters deleted longer than grace_s ago, and every file that no row needs then; or only tell."""
        return collect(self._open_catalog(), self._shelf, self._uploads, grace_s, dry_run=dry_run)

    def fsck(self, *, full: bool = False, repair: bool = False) -> tuple[Finding, ...]:
        """Compare rows and files; full: hash them all; repair: mend what can be mended."""
        return inspect(self, self._open_catalog(), self._shelf, self._uploads, full=full, repair=repair)

    def stats(self) -> StoreStats:
        """Counts and sizes."""
        adapters, versions, blobs, size = self._open_catalog().counts()
        return StoreStats(adapters, versions, blobs, size, free_bytes(self._shelf.root))

    def compiled(self, version: VersionRecord) -> Path:
        """The compiled file of a version; made again from the blob if it is not as it should be."""
        path = self._shelf.compiled_file(version.layout_digest, version.digest)
        if _is_current(path, version):
            return path
        layout = self.layout(version.layout_digest)
        blob = self._shelf.verified_blob(version.blob_digest)
        container = read_container(blob, max(self._limits.file_bytes, version.size_bytes))
        plan = planned(container, version.options, version.adapter, [layout], layout)
        part = self._shelf.new_part()
        try:
            self._write_compiled(plan, part)
            self._shelf.disk.publish(part, path)
        finally:
            self._shelf.drop(part)
        return path

    def _open_catalog(self) -> Catalog:
        if self._closed:
            raise Closed("the store is closed")
        return self._catalog


def _is_current(path: Path, version: VersionRecord) -> bool:
    if version.embedding is not None:
        return compiled_embedding.is_current(path, version.embedding)
    return is_current(path, version.ranks)


def _warned(report: AcceptReport, warnings: tuple[str, ...]) -> AcceptReport:
    return replace(report, warnings=(*report.warnings, *warnings))


def _page(rows: list[T], size: int, listing: str, key: Callable[[T], str | int]) -> Page[T]:
    token = write_token(listing, key(rows[size - 1])) if len(rows) > size else ""
    return Page(tuple(rows[:size]), token)
