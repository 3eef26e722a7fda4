"""From a version to its canonical factors in host memory.

Takes versions, and the store's compiled files in memory; gives factors and vectors, on whatever thread it is called. It
knows no device and keeps nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loramux_server.engine.blends import Vectors
from loramux_server.engine.module_factors import ModuleFactors
from loramux_server.metrics import Metrics
from loramux_store.compiled_arrays import CompiledFile
from loramux_store.compiled_file import vector_name
from loramux_store.record import VersionRecord

Read = Callable[[VersionRecord], "HostAdapter"]


@dataclass(frozen=True, slots=True)
class HostAdapter:
    """A version in host memory, fp32: factors by module path, and of each of its embeddings the vectors [count, width]
    by text encoder."""

    factors: Mapping[str, ModuleFactors]
    vectors: Vectors

    @property
    def nbytes(self) -> int:
        """Of all its numbers."""
        parts = (part for module in self.factors.values() for part in module.parts.values())
        vectors = (each for embedding in self.vectors for each in embedding.values())
        return sum(each.nbytes for each in (*parts, *vectors))


class CompiledReader:
    """Reads compiled files. read: gives that of a version, checked, and made again where it must be (the store's
    `read_compiled`)."""

    def __init__(self, read: Callable[[VersionRecord], CompiledFile], metrics: Metrics) -> None:
        self._read = read
        self._metrics = metrics

    def __call__(self, version: VersionRecord) -> HostAdapter:
        """The version's factors.

        Raises:
            StoreError: what the store says of a file that is not as it should be.
        """
        with self._metrics.load_seconds.labels("read").time():
            file = self._read(version)
        with self._metrics.load_seconds.labels("convert").time():
            return host_adapter(file)


def host_adapter(file: CompiledFile) -> HostAdapter:
    """What is in a file; its tensors are views of the file's bytes."""
    tensors = {name: torch.from_numpy(array) for name, array in file.tensors.items()}
    vectors = tuple(
        {encoder: tensors[vector_name(number, encoder)] for encoder in widths}
        for number, (_, _, widths) in enumerate(file.embeddings)
    )
    return HostAdapter(_factors(tensors, file.modules), vectors)


def _factors(tensors: Mapping[str, Tensor], modules: Mapping[str, Mapping[str, Any]]) -> dict[str, ModuleFactors]:
    """By module path."""
    parts: dict[str, dict[str, Tensor]] = {path: {} for path in modules}
    for name, tensor in tensors.items():
        path, _, part = name.rpartition(".")
        if path in parts:
            parts[path][part] = tensor
    return {path: ModuleFactors(parts[path], float(entry["scale"]), entry["axis"]) for path, entry in modules.items()}
