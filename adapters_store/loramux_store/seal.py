"""The seal of a compiled file: its last tensor, the SHA-256 of all bytes before it.

Takes offsets and files; gives the header's entry, and says whether a seal is unbroken. Knows neither factors nor
vectors.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["SEAL", "SEAL_BYTES", "is_unbroken", "seal_entry"]

SEAL = "sha256"
SEAL_BYTES = 32
_CHUNK = 1 << 20


def seal_entry(at: int) -> dict[str, object]:
    """What the header says of the seal of a file whose other tensors take `at` bytes."""
    return {"dtype": "U8", "shape": [SEAL_BYTES], "data_offsets": [at, at + SEAL_BYTES]}


def is_unbroken(path: Path) -> bool:
    """Whether the file ends with the SHA-256 of what comes before. Raises OSError."""
    found, left = hashlib.sha256(), path.stat().st_size - SEAL_BYTES
    with path.open("rb") as handle:
        while left > 0 and (chunk := handle.read(min(left, _CHUNK))):
            found.update(chunk)
            left -= len(chunk)
        return handle.read() == found.digest()
