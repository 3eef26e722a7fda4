"""Every error the store raises, as one tree.

    StoreError
    ├── NotFound            no such adapter, version or alias
    ├── PinNotFound         the reference is not pinned
    ├── UploadNotFound      no such upload: finished long ago, aborted, expired or never begun
    ├── UploadBusy          another call writes to the upload
    ├── WrongOffset         the upload goes on elsewhere in the file
    ├── QuotaExceeded       the store would hold more than it may
    ├── Changed             the adapter is not as whoever changes it has seen it
    ├── InvalidArgument     a field of a request is wrong (field, value, expected)
    ├── Inexpressible       a form or a way of merging cannot say what an adapter does (what, module)
    ├── Refused             the file is wrong (reason, detail); nothing is left of it
    │   ├── ChecksumMismatch    the bytes are not those that were announced
    │   └── TooLarge            more bytes than the limit or than announced
    ├── NoSpace             the disk is full
    ├── DiskFailed          the disk or the catalog gives errors
    │   └── ReadOnly            the disk can only be read
    ├── DataLoss            a stored file no longer has its digest
    ├── SchemaTooNew        a newer release has written this store
    ├── UnsafeFilesystem    a network file system, where SQLite's WAL can lose commits
    └── Closed              the store or the upload is closed

Takes what went wrong; gives an exception whose text an operator can act on. Knows no gRPC:
the server maps these classes to status codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = [
    "Changed",
    "ChecksumMismatch",
    "Closed",
    "DataLoss",
    "DiskFailed",
    "Inexpressible",
    "InvalidArgument",
    "NoSpace",
    "NotFound",
    "PinNotFound",
    "QuotaExceeded",
    "ReadOnly",
    "Refused",
    "SchemaTooNew",
    "StoreError",
    "TooLarge",
    "UnsafeFilesystem",
    "UploadBusy",
    "UploadNotFound",
    "WrongOffset",
]

_MOST = 1000
"""Characters of a message."""


def _sayable(text: str, most: int = _MOST) -> str:
    """Short enough to be sent, and Unicode: what is wrong with a file is often told in the file's own words."""
    said = text[: most + 1].encode(errors="backslashreplace").decode()  # JSON may hold lone surrogates
    return said if len(said) <= most else said[: most - 3] + "..."


def _shown(value: object) -> str:
    try:
        return _sayable(repr(value[:200] if isinstance(value, str) else value), 200)
    except (RecursionError, ValueError):  # nested too deep, or a number of too many digits
        return f"a {type(value).__name__}"


class StoreError(Exception):
    """Root of the tree."""

    def __init__(self, message: str) -> None:
        self.message = _sayable(message)
        super().__init__(self.message)


class NotFound(StoreError):
    """No such adapter, version or alias."""

    def __init__(self, ref: str, message: str | None = None) -> None:
        super().__init__(message or f"no adapter {ref!r}")
        self.ref = ref


class PinNotFound(StoreError):
    """The reference, spelled like that, is not pinned."""

    def __init__(self, ref: str, pinned: Iterable[str]) -> None:
        known = ", ".join(sorted(pinned)) or "none of its references is"
        super().__init__(f"{ref!r} is not pinned; pinned: {known}")
        self.ref = ref


class UploadNotFound(StoreError):
    """No upload has that id, not any more or not yet."""

    def __init__(self, upload_id: str) -> None:
        super().__init__(f"no upload {upload_id!r}: it has expired, was aborted or never begun")
        self.upload_id = upload_id


class UploadBusy(StoreError):
    """Another call writes to the upload; an upload has one writer at a time."""

    def __init__(self, upload_id: str) -> None:
        super().__init__(f"another call writes to upload {upload_id!r}")
        self.upload_id = upload_id


class WrongOffset(StoreError):
    """The next byte of an upload is another one; `received` says which."""

    def __init__(self, offset: int, received: int) -> None:
        super().__init__(f"offset: got {offset}, expected {received}, where the bytes received end")
        self.offset = offset
        self.received = received


class QuotaExceeded(StoreError):
    """The store would hold more than it may."""

    def __init__(self, subject: str, needed: int, used: int, limit: int) -> None:
        super().__init__(f"{subject}: {needed} more would exceed the quota of {limit}, of which {used} are used")
        self.subject = subject
        self.needed = needed
        self.used = used
        self.limit = limit


class Changed(StoreError):
    """The adapter has changed since whoever asks has seen it."""

    def __init__(self, name: str, etag: str, current: str) -> None:
        super().__init__(f"etag: got {etag!r}, expected {current!r}: adapter {name!r} has changed meanwhile")
        self.name = name
        self.etag = etag
        self.current = current


class InvalidArgument(StoreError):
    """A field of a request is wrong."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        self.field = _sayable(field, 200)
        super().__init__(f"{self.field}: got {_shown(value)}, expected {expected}")
        self.value = value
        self.expected = expected


class Inexpressible(StoreError):
    """What an adapter does to a module cannot be said in a form, or be merged in a way."""

    def __init__(self, what: str, module: str, why: str) -> None:
        super().__init__(f"{what} cannot say {module}: {why}")
        self.what = what
        self.module = module


class Refused(StoreError):
    """The file is not accepted; `reason` is a word for programs, such as `pickle_not_allowed`."""

    def __init__(self, reason: str, message: str, detail: Mapping[str, str] | None = None) -> None:
        self.reason = _sayable(reason, 100)
        super().__init__(f"{self.reason}: {message}")
        self.detail: dict[str, str] = {k: _sayable(str(v), 500) for k, v in (detail or {}).items()}


class ChecksumMismatch(Refused):
    """The bytes do not have the sha256 that was announced."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(
            "checksum_mismatch",
            f"the bytes have sha256 {got}, announced was {expected}",
            {"expected": expected, "got": got},
        )


class TooLarge(Refused):
    """More bytes than the limit, or than the upload announced."""

    def __init__(self, size: int, limit: int, what: str = "the file limit") -> None:
        super().__init__(
            "too_large",
            f"{size} bytes is more than {what} of {limit} bytes",
            {"size": str(size), "limit": str(limit)},
        )


class NoSpace(StoreError):
    """The disk of the store is full, or would be."""

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(f"no space on the store's disk: {needed} bytes needed, {free} free")
        self.needed = needed
        self.free = free


class DiskFailed(StoreError):
    """The store's disk gave an error: what was asked is not done, what was there before still is."""

    def __init__(self, operation: str, reason: str) -> None:
        super().__init__(f"the store's disk failed at {operation}: {reason}")


class ReadOnly(DiskFailed):
    """The store may be read, not written."""


class DataLoss(StoreError):
    """A stored file is gone or no longer has its digest."""

    def __init__(self, digest: str, message: str) -> None:
        super().__init__(f"blob {digest}: {message}")
        self.digest = digest
        self.cause = message


class SchemaTooNew(StoreError):
    """A newer release has written this store; opening it could harm it."""

    def __init__(self, found: str, known: str) -> None:
        super().__init__(
            f"the catalog has schema {found!r}, this release knows up to {known!r}: "
            "use the release that wrote it, or a newer one"
        )
        self.found = found
        self.known = known


class UnsafeFilesystem(StoreError):
    """The store lies on a network file system."""

    def __init__(self, path: str, kind: str) -> None:
        super().__init__(
            f"{path} is on a {kind} file system, where SQLite's write-ahead log can lose "
            "commits: choose a folder on a local disk"
        )
        self.path = path
        self.kind = kind


class Closed(StoreError):
    """The store or the upload has been closed."""
