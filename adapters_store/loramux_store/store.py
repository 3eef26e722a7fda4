"""The store: adapters come in as files and are kept, listed and handed out.

Takes upload specs, bytes and names; gives records, reports, paths and bytes, never live tensors.
Synchronous and thread-safe. Knows no server, no gRPC and no kernels.

The way of an upload, each step durable before the next: part file -> sha256 -> container check -> layout
and scales -> compiled file -> blob -> catalog row. A crash leaves the version whole, or leftovers.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar, get_args

from loramux_store.backup import refuse_backup
from loramux_store.blobs import READ_CHUNK, Shelf
from loramux_store.catalog import Catalog, NewVersion
from loramux_store.collecting import collect
from loramux_store.compiling import Compiling
from loramux_store.conversion import convert, planned
from loramux_store.disk import Disk, free_bytes, refuse_network
from loramux_store.errors import Closed, InvalidArgument, NotFound, StoreError, UploadNotFound
from loramux_store.formats.plan import Plan
from loramux_store.fsck import inspect
from loramux_store.header import Container, read_container
from loramux_store.layout import KNOWN_NAMES, Layout, known_layout, known_layouts
from loramux_store.listings import adapter_page, event_page, version_page
from loramux_store.names import Ref, check_name, parse_ref
from loramux_store.new_version import new_version
from loramux_store.owner_words import check_change
from loramux_store.record import (
    AcceptReport,
    AdapterChange,
    AdapterRecord,
    AuditEvent,
    Collected,
    Finding,
    Page,
    Pin,
    Published,
    Reclaimed,
    StoreStats,
    Tier,
    UploadSpec,
    VersionRecord,
    VersionSummary,
)
from loramux_store.report_json import report_to_json
from loramux_store.room import Limits, check_room
from loramux_store.sniff import MAX_FILE
from loramux_store.upload import Upload, check_spec
from loramux_store.uploads import Unfinished, Uploads

if TYPE_CHECKING:
    from loramux_store.compiled_arrays import CompiledFile

__all__ = ["Store"]

T = TypeVar("T")

UPLOAD_IDLE_S = 24 * 3600.0
_LEAST_FREE = 1 << 20  # bytes; the catalog and a small adapter need as much
LOCAL = "local"
"""Who changes a store that is opened here, unless the caller knows better."""


class Store:
    """An open store. Use `Store.open`."""

    def __init__(self, shelf: Shelf, catalog: Catalog, uploads: Uploads, limits: Limits) -> None:
        self._shelf = shelf
        self._catalog = catalog
        self._uploads = uploads
        self._limits = limits
        self._compiling = Compiling(shelf, self.layout, limits.file_bytes, self._read_anew)
        self._closed = False
        self._base: Layout | None = None

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
        refuse_backup(shelf.root)
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

    def serve_base(self, layout: Layout) -> None:
        """From now on what fits the layout of this base as well as others is for it; register_layout first."""
        self._base = layout

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

    def begin_upload(
        self, spec: UploadSpec, upload_id: str | None = None, offset: int | None = None, *, who: str = LOCAL
    ) -> Upload:
        """Begin an upload, or go on with the one of that id, which has the same spec.

        offset: where in the file the next byte belongs; WrongOffset where that is elsewhere. Whether
        there is room is asked of the size announced, before any byte is taken. An id whose upload was
        published begins anew. who: for the audit log.
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
            who=who,
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
        if version.digest != found.digest:  # removed since, and the number is another file's
            raise UploadNotFound(upload_id)
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
        container = read_container(upload.path, self._limits.file_bytes)
        plan = self._plan(container, spec)
        if (found := self._open_catalog().report_on(blob_digest, plan.layout.digest)) is not None:
            plan = self._plan(container, spec, found)  # versions with one digest share a compiled file
        if spec.validate_only:
            warnings = convert(plan, len)
            return Published(None, _warned(plan.report, warnings), created=False)
        compiled = self._shelf.new_part()
        try:
            report = _warned(plan.report, self._compiling.write(plan, compiled, self._uploads.reserved().remaining))
            upload.sync()
            new = new_version(upload, blob_digest, plan, report, container)
            version, created = self._open_catalog().add_version(
                spec, new, upload.who, lambda: self._place(upload, compiled, new)
            )
        finally:
            self._shelf.drop(compiled)
        return Published(version, report, created)

    def _place(self, upload: Upload, compiled: Path, new: NewVersion) -> None:
        disk = self._shelf.disk
        disk.publish(upload.path, self._shelf.blob(new.blob_digest))
        disk.publish(compiled, self._shelf.compiled_file(new.layout.digest, new.digest))

    def _plan(self, container: Container, spec: UploadSpec, recorded: AcceptReport | None = None) -> Plan:
        wanted = self.layout(spec.layout) if spec.layout is not None else None
        return planned(container, spec.options, spec.name, self.layouts(), wanted, recorded, self._base)

    # -- reading -----------------------------------------------------------------------------

    def resolve(self, ref: str) -> VersionRecord:
        """The version that `name`, `name@3` or `name@alias` means now."""
        return self._open_catalog().version(parse_ref(ref))

    def read_blob(self, version: VersionSummary, offset: int = 0) -> Generator[bytes]:
        """The bytes that were uploaded, from offset on. DataLoss, at the end at the latest, if they are others now."""
        self._open_catalog()
        if not 0 <= offset <= version.size_bytes:
            raise InvalidArgument("offset", offset, f"0 to {version.size_bytes}, the size of the file")
        return self._shelf.read_blob(version.blob_digest, version.size_bytes, offset)

    def get_adapter(self, name: str) -> AdapterRecord:
        """An adapter that is not deleted."""
        return self._open_catalog().adapter(check_name(name))

    def list_adapters(
        self, page_size: int, page_token: str = "", *, filter: str = "", order_by: str = "", deleted: bool = False
    ) -> Page[AdapterRecord]:
        """Adapters by name, or those and in the order that `selection` reads; deleted: those too."""
        return adapter_page(self._open_catalog(), page_size, page_token, filter, order_by, deleted)

    def list_versions(self, name: str, page_size: int, page_token: str = "") -> Page[VersionSummary]:
        """Versions of an adapter, the newest first."""
        return version_page(self._open_catalog(), check_name(name), page_size, page_token)

    def list_events(self, page_size: int, page_token: str = "", adapter: str = "") -> Page[AuditEvent]:
        """The audit log, the newest first; of one adapter, which may be deleted, where it is named."""
        return event_page(self._open_catalog(), page_size, page_token, adapter and check_name(adapter, "adapter"))

    # -- what owners do ----------------------------------------------------------------------

    def update_adapter(self, name: str, change: AdapterChange, *, etag: str = "", who: str = LOCAL) -> AdapterRecord:
        """Say anew what people read of an adapter; with an etag only if it is still as it was (else Changed)."""
        check_change(change)
        return self._open_catalog().change(check_name(name), change, etag, who)

    def delete_adapter(self, name: str, *, etag: str = "", who: str = LOCAL) -> AdapterRecord:
        """Hide an adapter. Running images keep its version; undelete_adapter or an upload brings the name back."""
        return self._open_catalog().delete(check_name(name), etag, who)

    def undelete_adapter(self, name: str, *, etag: str = "", who: str = LOCAL) -> AdapterRecord:
        """Show a deleted adapter again, as it was."""
        return self._open_catalog().undelete(check_name(name), etag, who)

    # -- pins --------------------------------------------------------------------------------

    def pin_adapter(self, ref: str, tier: Tier, *, who: str = LOCAL) -> AdapterRecord:
        """Have servers keep what a reference means, now and whenever that changes, in a tier. `name` means the latest
        version, `name@prod` what the alias does, `name@3` that one; NotFound where it means nothing now."""
        catalog, parsed = self._open_catalog(), parse_ref(ref)
        if tier not in get_args(Tier):
            raise InvalidArgument("tier", tier, f"one of {', '.join(get_args(Tier))}")
        catalog.version(parsed)
        return catalog.set_pin(parsed, tier, who)

    def unpin_adapter(self, ref: str, *, who: str = LOCAL) -> AdapterRecord:
        """Take back the pin of a reference, spelled as it was pinned; PinNotFound where there is none."""
        return self._open_catalog().set_pin(parse_ref(ref), None, who)

    def pins(self) -> list[Pin]:
        """All there are, the oldest first, but those of deleted adapters: undeleting brings them back."""
        return self._open_catalog().pins()

    # -- keeping -----------------------------------------------------------------------------

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

    def gc(self, grace_s: float, *, dry_run: bool = False, who: str = LOCAL) -> Collected:
        """Remove adapters deleted longer than grace_s ago, and every file that no row needs then; or only tell."""
        return collect(self._open_catalog(), self._shelf, self._uploads, grace_s, who, dry_run=dry_run)

    def fsck(self, *, full: bool = False, repair: bool = False) -> tuple[Finding, ...]:
        """Compare rows and files; full: hash them all; repair: mend what can be mended."""
        return inspect(self, self._open_catalog(), self._shelf, self._uploads, full=full, repair=repair)

    def catalog_faults(self) -> list[str]:
        """What a look at the catalog alone finds wrong with it, in words: a second for 100,000 adapters."""
        return self._open_catalog().faults(quick=True)

    def writable(self) -> bool:
        """Whether it takes adapters just now: its disk is neither full nor read-only and gives no errors. Where a write
        was refused, something small is written to see whether that is over."""
        catalog, shelf = self._open_catalog(), self._shelf
        try:
            if not os.access(shelf.root, os.W_OK) or free_bytes(shelf.uploads) < _LEAST_FREE:
                return False
            if shelf.disk.refused or catalog.refused:
                shelf.try_write()
                catalog.try_write()
                shelf.disk.refused = catalog.refused = False
        except (StoreError, OSError):
            return False
        return True

    def stats(self) -> StoreStats:
        """Counts and sizes."""
        adapters, versions, blobs, size = self._open_catalog().counts()
        return StoreStats(adapters, versions, blobs, size, free_bytes(self._shelf.root))

    def compiled(self, version: VersionRecord) -> Path:
        """The compiled file of a version; made again from the blob if it is not as it should be."""
        return self._compiling.path(version)

    def read_compiled(self, version: VersionRecord) -> CompiledFile:
        """That file in memory, checked while it is read, which is once."""
        return self._compiling.read(version)

    def _read_anew(self, version: VersionRecord, report: AcceptReport) -> None:
        """The report follows the compiled file; how its layout was found stays as it was told."""
        said = replace(version.report, matched=report.matched, warnings=report.warnings)
        if version.embedding is None and said != version.report:
            self._open_catalog().correct(version, report_to_json(said))

    def _open_catalog(self) -> Catalog:
        if self._closed:
            raise Closed("the store is closed")
        return self._catalog


def _warned(report: AcceptReport, warnings: tuple[str, ...]) -> AcceptReport:
    return replace(report, warnings=(*report.warnings, *warnings))
