"""Which tokens of a prompt go into one chunk of the text encoder.

Takes runs of items (a word's token, an embedding's vectors) in the order of the text; gives chunks. It knows no text,
no model and no weights.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def fill(runs: Iterable[Sequence[T]], room: int) -> list[list[T]]:
    """Chunks of at most `room` items, at least one chunk. A run is split only where it is longer than a chunk: one that
    does not fit into what is left of a chunk begins the next."""
    chunks: list[list[T]] = [[]]
    for run in runs:
        if len(chunks[-1]) + len(run) > room >= len(run):
            chunks.append([])
        for item in run:
            if len(chunks[-1]) == room:
                chunks.append([])
            chunks[-1].append(item)
    return chunks
