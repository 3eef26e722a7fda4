"""From a version to its canonical factors in host memory.

Takes versions and the store's compiled files; gives factors and vectors, on whatever thread it is called. It knows no
device and keeps nothing.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loramux_server.engine.blends import Vectors
from loramux_server.engine.module_factors import ModuleFactors
from loramux_server.metrics import Metrics
from loramux_store.compiled_file import MAX_FILE, vector_name
from loramux_store.header import Container, read_container
from loramux_store.record import VersionRecord
from loramux_store.seal import SEAL

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
    """Reads compiled files. compiled: gives that of a version, checked, and made again where it must be (the store's
    `compiled`)."""

    def __init__(self, compiled: Callable[[VersionRecord], Path], metrics: Metrics) -> None:
        self._compiled = compiled
        self._metrics = metrics

    def __call__(self, version: VersionRecord) -> HostAdapter:
        """The version's factors.

        Raises:
            StoreError: what the store says of a file that is not as it should be.
        """
        with self._metrics.load_seconds.labels("read").time():
            file = self._file(version)
        with self._metrics.load_seconds.labels("convert").time():
            return file.adapter()

    def _file(self, version: VersionRecord) -> "CompiledFile":
        """Once more where the file went away between the store's check and the reading."""
        try:
            return CompiledFile.read(self._compiled(version))
        except FileNotFoundError:
            return CompiledFile.read(self._compiled(version))


@dataclass(frozen=True, slots=True)
class CompiledFile:
    """A compiled file in memory. data: all its bytes, uint8, of which everything else is a view: `safe_open` keeps two
    integers for every tensor it ever gave, and `load` copies each (safetensors 0.8)."""

    container: Container
    data: Tensor

    @classmethod
    def read(cls, path: Path) -> "CompiledFile":
        """The file, read once and at once."""
        container = read_container(path, MAX_FILE)
        data = torch.empty(container.size, dtype=torch.uint8)
        with path.open("rb", buffering=0) as handle:
            _fill(handle, data)
        return cls(container, data)

    def adapter(self) -> HostAdapter:
        """What is in it."""
        tensors = {
            name: self.data[entry.begin : entry.end].view(torch.float32).view(entry.shape)
            for name, entry in self.container.tensors.items()
            if name != SEAL
        }
        said = {name: json.loads(self.container.metadata[name]) for name in ("modules", "embeddings")}
        vectors = tuple(
            {encoder: tensors[vector_name(number, encoder)] for encoder in widths}
            for number, (_, _, widths) in enumerate(said["embeddings"])
        )
        return HostAdapter(_factors(tensors, said["modules"]), vectors)


def _fill(handle: FileIO, data: Tensor) -> None:
    """One read takes 2 GiB at most."""
    left = memoryview(data.numpy().data)
    while left:
        count = handle.readinto(left)
        if not count:
            raise OSError(f"{handle.name} has become shorter while it was read")
        left = left[count:]


def _factors(tensors: Mapping[str, Tensor], modules: Mapping[str, Mapping[str, Any]]) -> dict[str, ModuleFactors]:
    """By module path."""
    parts: dict[str, dict[str, Tensor]] = {path: {} for path in modules}
    for name, tensor in tensors.items():
        path, _, part = name.rpartition(".")
        if path in parts:
            parts[path][part] = tensor
    return {path: ModuleFactors(parts[path], float(entry["scale"]), entry["axis"]) for path, entry in modules.items()}
