"""A store's compiled files: written at the upload, made again from the blob where they are not as they should be.

Takes plans and versions; gives files, by their path or in memory. Knows no catalog.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loramux_store.blobs import Shelf
from loramux_store.compiled_file import file_bytes, is_current
from loramux_store.conversion import convert, planned
from loramux_store.disk import free_bytes
from loramux_store.errors import DataLoss, DiskFailed, NoSpace
from loramux_store.formats.plan import Plan
from loramux_store.header import read_container
from loramux_store.layout import Layout
from loramux_store.record import AcceptReport, VersionRecord
from loramux_store.seal import Seal

if TYPE_CHECKING:
    from loramux_store.compiled_arrays import CompiledFile

__all__ = ["Compiling"]


class Compiling:
    """Of one store. layout: gives the one of a digest; file_bytes: the most that an upload may have; tell: is told of a
    version whose file is made again how it is read now, which an earlier release may have done otherwise."""

    def __init__(
        self,
        shelf: Shelf,
        layout: Callable[[str], Layout],
        file_bytes: int,
        tell: Callable[[VersionRecord, AcceptReport], None],
    ) -> None:
        self._shelf = shelf
        self._layout = layout
        self._file_bytes = file_bytes
        self._tell = tell

    def write(self, plan: Plan, part: Path, promised: int = 0) -> tuple[str, ...]:
        """Writes what a plan makes to a part file, durably; the warnings that only values can give. promised: bytes of
        the disk that others will need. Raises Refused, and NoSpace before anything is written."""
        size, free = file_bytes(*plan.compiled), max(0, free_bytes(part.parent) - promised)
        if size > free:
            raise NoSpace(size, free)
        disk, seal = self._shelf.disk, Seal()
        with disk.create(part) as handle:

            def write(data: memoryview) -> None:
                seal.update(data)
                disk.write(handle, data)

            warnings = convert(plan, write)
            disk.write(handle, seal.digest())
            disk.sync(handle)
        return warnings

    def path(self, version: VersionRecord) -> Path:
        """A version's file, as it should be. Raises DataLoss where neither it nor the blob is."""
        path = self._path(version)
        if not is_current(path, version.ranks, version.embeddings):
            self._make_again(version)
        return path

    def read(self, version: VersionRecord) -> CompiledFile:
        """A version's file in memory, as it should be; its bytes are read once. One that the disk does not take, being
        full or read-only, is made in memory alone. Raises DataLoss like `path`, and where a file that was made again
        cannot be read."""
        # here, not above: whoever only lists adapters needs no numpy
        from loramux_store.compiled_arrays import in_memory, read_current

        path = self._path(version)
        found = read_current(path, version.ranks, version.embeddings)
        if found is None:
            try:
                self._make_again(version)
            except (NoSpace, DiskFailed):
                found = in_memory(partial(convert, self._plan(version)), version.ranks, version.embeddings)
            else:
                found = read_current(path, version.ranks, version.embeddings)
        if found is None:
            raise DataLoss(version.blob_digest, "what was compiled of it anew cannot be read back")
        return found

    def _path(self, version: VersionRecord) -> Path:
        return self._shelf.compiled_file(version.layout_digest, version.digest)

    def _plan(self, version: VersionRecord) -> Plan:
        layout = self._layout(version.layout_digest)
        blob = self._shelf.verified_blob(version.blob_digest)
        container = read_container(blob, max(self._file_bytes, version.size_bytes))
        return planned(container, version.options, version.adapter, [layout], layout, version.report)

    def _make_again(self, version: VersionRecord) -> None:
        plan, part = self._plan(version), self._shelf.new_part()
        try:
            warnings = self.write(plan, part)
            self._shelf.disk.publish(part, self._path(version))
        finally:
            self._shelf.drop(part)
        self._tell(version, replace(plan.report, warnings=(*plan.report.warnings, *warnings)))
