"""One upload on its way: a part file that grows.

Takes a checked UploadSpec and chunks; gives a finished part to whoever opened it, or removes it. The
bytes are hashed once, when all are there, as the disk has them: so an upload that goes on after days
needs no state but its part, and what is published is what was checked.
Knows no formats and no catalog.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from loramux_store.blobs import sha256_of
from loramux_store.disk import Disk
from loramux_store.errors import ChecksumMismatch, Closed, InvalidArgument, Refused, TooLarge
from loramux_store.formats.peft_config import parse_config
from loramux_store.names import check_name, check_trigger
from loramux_store.owner_words import check_said
from loramux_store.record import Published, UploadSpec
from loramux_store.report_json import options_to_json
from loramux_store.uploads import Ended, Part, Uploads

__all__ = ["Upload", "check_spec"]

_MAX_CONFIG = 1 << 20


class Upload:
    """Write the bytes, then commit. As a context manager it aborts what was not committed.

    who: whoever began this turn, for the audit log. received: bytes so far, also those of earlier turns.
    resumable: what became of it, or what came of it, can be asked for by its id. Safe to use from several
    threads: each call waits for the one before.
    """

    def __init__(
        self,
        upload_id: str,
        spec: UploadSpec,
        part: Part,
        uploads: Uploads,
        disk: Disk,
        max_bytes: int,
        finish: Callable[[Upload, str], Published],
        *,
        resumable: bool,
        who: str,
    ) -> None:
        self.id = upload_id
        self.spec = spec
        self.who = who
        self.received = part.path.stat().st_size
        self._part = part
        self._uploads = uploads
        self._disk = disk
        self._max_bytes = max_bytes
        self._finish = finish
        self._resumable = resumable
        self._turn = threading.Lock()
        self._open = True

    @property
    def path(self) -> Path:
        """Of the part."""
        return self._part.path

    def write(self, chunk: bytes) -> int:
        """Append a chunk; how many bytes there are now. Where that fails the upload is aborted."""
        with self._turn:
            self._require_open()
            total = self.received + len(chunk)
            try:
                self._check_size(total)
                self._disk.write(self._part.handle, chunk)
            except BaseException:
                self._end(None)
                raise
            self.received = total
            return total

    def commit(self) -> Published:
        """Check, convert and publish; whatever goes wrong, nothing but reclaimable files stays.

        Bytes that are missing may still come: then the upload stays as it is.
        """
        with self._turn:
            self._require_open()
            self._check_size_announced()
            ended: Ended | None = None
            try:
                published = self._finish(self, self._checked_sha256())
                if self._resumable and (version := published.version) is not None:
                    ended = Ended(version.adapter, version.number, version.digest, published.created)
                return published
            finally:
                self._end(ended)

    def sync(self) -> None:
        """The bytes received reach the disk."""
        self._disk.sync(self._part.handle)

    def leave(self) -> None:
        """Let the upload go on another time, or abort it if it is not resumable; no effect after the end."""
        with self._turn:
            if self._open and self._resumable:
                self._open = False
                self._uploads.leave(self._part)
            elif self._open:
                self._end(None)

    def abort(self) -> None:
        """Throw the bytes away; no effect after commit or leave."""
        with self._turn:
            if self._open:
                self._end(None)

    def __enter__(self) -> Upload:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Abort, unless committed."""
        self.abort()

    def _end(self, ended: Ended | None) -> None:
        self._open = False
        self._uploads.end(self.id, self._part, ended)

    def _require_open(self) -> None:
        if not self._open:
            raise Closed("the upload has been committed, aborted or left")

    def _check_size(self, total: int) -> None:
        if total > self._max_bytes:
            raise TooLarge(total, self._max_bytes)
        if self.spec.size_bytes is not None and total > self.spec.size_bytes:
            raise TooLarge(total, self.spec.size_bytes, "the announced size")

    def _check_size_announced(self) -> None:
        size = self.spec.size_bytes
        if size is not None and self.received != size:
            raise Refused(
                "size_mismatch",
                f"truncated: {self.received} bytes came, {size} were announced",
                {"expected": str(size), "got": str(self.received), "truncated": "true"},
            )

    def _checked_sha256(self) -> str:
        found, expected = sha256_of(self.path), self.spec.sha256
        if expected is not None and found != expected:
            raise ChecksumMismatch(expected, found)
        return found


def check_spec(spec: UploadSpec) -> UploadSpec:
    """The spec with its sha256 in lower case and its trigger normalised, if every field is what it should be."""
    check_name(spec.name)
    if spec.size_bytes is not None and spec.size_bytes < 0:
        raise InvalidArgument("size_bytes", spec.size_bytes, "0 or more")
    check_said(spec)
    if spec.options.peft_config is not None:
        if len(spec.options.peft_config) > _MAX_CONFIG:
            raise InvalidArgument("options.peft_config", "...", f"at most {_MAX_CONFIG} characters")
        parse_config(spec.options.peft_config)
    options_to_json(spec.options)
    if spec.options.trigger is not None:
        trigger = check_trigger(spec.options.trigger, "options.trigger")
        spec = replace(spec, options=replace(spec.options, trigger=trigger))
    if spec.sha256 is None:
        return spec
    digest = spec.sha256.lower()
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise InvalidArgument("sha256", spec.sha256, "64 hexadecimal digits")
    return replace(spec, sha256=digest)
