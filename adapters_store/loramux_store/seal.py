"""The seal of a compiled file: its last tensor, the XXH3-128 of all bytes before it.

It tells a file that a disk or a crash has damaged: torn writes, lost pages, flipped bits. It is no defence against
whoever can write to the store: no digest that stands in the file itself is. SHA-256 has its place where a file is named
by its bytes, in blobs; on a compiled file, read at every load, it would take as long as reading.
Takes offsets and files; gives the header's entry, and says whether a seal is unbroken. Knows neither factors nor
vectors.
"""

from __future__ import annotations

from pathlib import Path

from xxhash import xxh3_128 as Seal

__all__ = ["SEAL", "SEAL_BYTES", "Seal", "is_unbroken", "seal_entry"]

SEAL = "xxh3_128"
SEAL_BYTES = 16
_CHUNK = 1 << 20  # stays in the processor's cache


def seal_entry(at: int) -> dict[str, object]:
    """What the header says of the seal of a file whose other tensors take `at` bytes."""
    return {"dtype": "U8", "shape": [SEAL_BYTES], "data_offsets": [at, at + SEAL_BYTES]}


def is_unbroken(path: Path, into: memoryview | None = None) -> bool:
    """Whether the file ends with the seal of what comes before. into: as long as the file; it is given the bytes on the
    way, so that nobody reads them twice. Raises OSError."""
    found, at, end = Seal(), 0, path.stat().st_size - SEAL_BYTES
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as handle:
        while at < end:
            piece = buffer[: end - at] if into is None else into[at : min(at + _CHUNK, end)]
            count = handle.readinto(piece)
            if not count:
                return False
            found.update(piece[:count])
            at += count
        seal = handle.read(SEAL_BYTES + 1)
    if seal != found.digest():
        return False
    if into is not None:
        into[end:] = seal
    return True
