"""Whether the store has room for an upload, asked before any byte is taken.

Takes the size announced, what other uploads have announced, and what is held; gives nothing, or the
error that says what there is too little of. Knows no files.
"""

from __future__ import annotations

from dataclasses import dataclass

from loramux_store.errors import NoSpace, QuotaExceeded, TooLarge
from loramux_store.uploads import Reserved

__all__ = ["Limits", "check_room"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a store takes in: bytes of a file, bytes of all files (None: what the disk holds), unfinished uploads."""

    file_bytes: int
    quota_bytes: int | None = None
    unfinished: int = 256


def check_room(size: int, limits: Limits, others: Reserved, free: int, held: int) -> None:
    """Raise TooLarge, QuotaExceeded or NoSpace unless size bytes may come.

    others: the unfinished uploads beside this one. free: bytes free on the disk. held: bytes of the
    files that count towards the quota.
    """
    if size > limits.file_bytes:
        raise TooLarge(size, limits.file_bytes)
    if others.uploads >= limits.unfinished:
        raise QuotaExceeded("unfinished uploads", 1, others.uploads, limits.unfinished)
    left = free - others.remaining
    if size > left:
        raise NoSpace(size, max(0, left))
    used = held + others.announced
    if limits.quota_bytes is not None and used + size > limits.quota_bytes:
        raise QuotaExceeded("bytes of adapter files", size, used, limits.quota_bytes)
