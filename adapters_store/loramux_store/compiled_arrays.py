"""A compiled file in memory, as arrays.

Takes a path and what the file must hold; gives its table and views of its bytes. Knows no torch. It is imported where
it is called: whoever only lists adapters needs no numpy.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loramux_store.compiled_file import NO_FILE_OF_OURS, modules_said
from loramux_store.record import Embedding
from loramux_store.seal import SEAL, SEAL_BYTES, is_unbroken

__all__ = ["CompiledFile", "in_memory", "read_current"]


@dataclass(frozen=True, slots=True)
class CompiledFile:
    """One in memory. modules: {module: {rank, scale, axis}}; embeddings: [trigger, vectors, {text encoder: width}] of
    each; tensors: by their names, fp32, views of one array."""

    modules: Mapping[str, Mapping[str, Any]]
    embeddings: Sequence[tuple[str, int, Mapping[str, int]]]
    tensors: Mapping[str, NDArray[np.float32]]


def read_current(path: Path, ranks: Mapping[str, int], embeddings: Sequence[Embedding]) -> CompiledFile | None:
    """The file, read once and at once; None where `compiled_file.is_current` says no.

    A header under an unbroken seal is one that we wrote: it is not checked like a stranger's, which takes a third as
    long as reading the whole file. `safe_open` would keep two integers for every tensor that it ever gave, and `load`
    copies each (safetensors 0.8).
    """
    try:
        data = np.empty(path.stat().st_size, np.uint8)
        return _opened(data, ranks, embeddings) if is_unbroken(path, data.data) else None
    except NO_FILE_OF_OURS:
        return None


def in_memory(
    convert: Callable[[Callable[[memoryview], object]], object],
    ranks: Mapping[str, int],
    embeddings: Sequence[Embedding],
) -> CompiledFile | None:
    """One that is never written: what `convert` gives its sink; None where that is of other modules or embeddings."""
    made = io.BytesIO()
    convert(made.write)
    made.write(bytes(SEAL_BYTES))  # nobody reads it
    return _opened(np.frombuffer(made.getbuffer(), np.uint8), ranks, embeddings)


def _opened(data: NDArray[np.uint8], ranks: Mapping[str, int], embeddings: Sequence[Embedding]) -> CompiledFile | None:
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    metadata = header.pop("__metadata__")
    modules = modules_said(metadata, ranks, embeddings)
    if modules is None:
        return None
    del header[SEAL]
    return CompiledFile(modules, json.loads(metadata["embeddings"]), _tensors(data[start:-SEAL_BYTES], header))


def _tensors(data: NDArray[np.uint8], header: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Views of all tensors' bytes."""
    floats = data.view(np.float32)
    begins = ((name, said["data_offsets"], said["shape"]) for name, said in header.items())
    return {name: floats[begin // 4 : end // 4].reshape(shape) for name, (begin, end), shape in begins}
