"""One upload on its way: a part file, hashed while it is written.

Takes a checked UploadSpec and chunks; gives a finished part to whoever opened it, or removes it.
Knows no formats and no catalog.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from loramux_store.disk import Disk, free_bytes
from loramux_store.errors import (
    ChecksumMismatch,
    Closed,
    InvalidArgument,
    NoSpace,
    Refused,
    StoreError,
    TooLarge,
)
from loramux_store.formats.peft_config import parse_config
from loramux_store.names import check_name, check_trigger
from loramux_store.record import Published, UploadSpec
from loramux_store.report_json import options_to_json

__all__ = ["Upload", "check_spec"]

_MAX_DESCRIPTION = 8192
_MAX_WORDS = 64
_MAX_LABELS = 64
_MAX_TEXT = 256
_MAX_CONFIG = 1 << 20
_MAX_WEIGHT = 16.0  # what a request may ask for


class Upload:
    """Write the bytes, then commit. As a context manager it aborts what was not committed."""

    def __init__(
        self,
        spec: UploadSpec,
        part: Path,
        disk: Disk,
        max_bytes: int,
        finish: Callable[[Upload], Published],
    ) -> None:
        self.spec = spec
        self.part = part
        self.received = 0
        self._disk = disk
        self._max_bytes = max_bytes
        self._finish = finish
        self._hash = hashlib.sha256()
        self._open = True
        self._check_room()
        self.handle: BinaryIO = disk.create(part)

    @property
    def sha256(self) -> str:
        """Hex digest of the bytes so far."""
        return self._hash.hexdigest()

    def write(self, chunk: bytes) -> int:
        """Append a chunk; how many bytes there are now."""
        self._require_open()
        total = self.received + len(chunk)
        try:
            self._check_size(total)
            self._disk.write(self.handle, chunk)
        except BaseException:
            self.abort()
            raise
        self._hash.update(chunk)
        self.received = total
        return total

    def commit(self) -> Published:
        """Check, convert and publish; whatever goes wrong, nothing but reclaimable files stays."""
        self._require_open()
        try:
            self._check_announced()
            return self._finish(self)
        finally:
            self.abort()

    def abort(self) -> None:
        """Throw the bytes away; no effect after commit."""
        if self._open:
            self._open = False
            self.handle.close()
            with suppress(StoreError):  # then the store's `reclaim` takes it later
                self._disk.remove(self.part)

    def __enter__(self) -> Upload:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Abort, unless committed."""
        self.abort()

    def _require_open(self) -> None:
        if not self._open:
            raise Closed("the upload has been committed or aborted")

    def _check_room(self) -> None:
        size = self.spec.size_bytes or 0
        if size > self._max_bytes:
            raise TooLarge(size, self._max_bytes)
        free = free_bytes(self.part.parent)
        if size > free:
            raise NoSpace(size, free)

    def _check_size(self, total: int) -> None:
        if total > self._max_bytes:
            raise TooLarge(total, self._max_bytes)
        if self.spec.size_bytes is not None and total > self.spec.size_bytes:
            raise TooLarge(total, self.spec.size_bytes, "the announced size")

    def _check_announced(self) -> None:
        size, expected = self.spec.size_bytes, self.spec.sha256
        if size is not None and self.received != size:
            raise Refused(
                "size_mismatch",
                f"truncated: {self.received} bytes came, {size} were announced",
                {"expected": str(size), "got": str(self.received), "truncated": "true"},
            )
        if expected is not None and self.sha256 != expected:
            raise ChecksumMismatch(expected, self.sha256)


def check_spec(spec: UploadSpec) -> UploadSpec:
    """The spec with its sha256 in lower case and its trigger normalised, if every field is what it should be."""
    check_name(spec.name)
    if spec.size_bytes is not None and spec.size_bytes < 0:
        raise InvalidArgument("size_bytes", spec.size_bytes, "0 or more")
    weight = spec.default_weight
    if weight is not None and not -_MAX_WEIGHT <= weight <= _MAX_WEIGHT:  # NaN fails both
        raise InvalidArgument("default_weight", weight, f"{-_MAX_WEIGHT} to {_MAX_WEIGHT}")
    _check_texts(spec)
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


def _check_texts(spec: UploadSpec) -> None:
    if len(spec.labels) > _MAX_LABELS:
        raise InvalidArgument("labels", f"{len(spec.labels)} labels", f"at most {_MAX_LABELS}")
    if len(spec.trigger_words) > _MAX_WORDS:
        raise InvalidArgument("trigger_words", f"{len(spec.trigger_words)} words", f"at most {_MAX_WORDS}")
    for key, value in spec.labels.items():
        _check_text("labels", key, _MAX_TEXT, empty=False)
        _check_text(f"labels.{key}", value, _MAX_TEXT)
    for word in spec.trigger_words:
        _check_text("trigger_words", word, _MAX_TEXT, empty=False)
    _check_text("description", spec.description, _MAX_DESCRIPTION)


def _check_text(field: str, text: str, limit: int, *, empty: bool = True) -> None:
    """Text that is stored and shown: bounded, and without control characters or half characters."""
    bad = any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in text)
    if bad or len(text) > limit or not (text or empty):
        raise InvalidArgument(field, text, f"up to {limit} characters without control characters")
