"""A compiled file's factors, one module at a time.

Takes a compiled file and its layout; gives Factors. Knows no file formats but the compiled one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loramux_store.compiled_file import MAX_FILE
from loramux_store.formats.convert import read_float32
from loramux_store.header import TensorEntry, read_container
from loramux_store.layout import Layout, ModuleSpec

__all__ = ["Factors", "conv_rows", "flat_rows", "read_factors"]


@dataclass(frozen=True, slots=True)
class Factors:
    """One module's delta: parts in fp32, by the names and in the shapes of compiled_file.py; scale: of all but m,
    bias and weight; axis: of m."""

    path: str
    spec: ModuleSpec
    parts: Mapping[str, Tensor]
    scale: float
    axis: str = ""

    @property
    def rank(self) -> int:
        """Its rank rows, 0 for any other delta."""
        return self.parts["a"].shape[0] if "a" in self.parts else 0

    def delta(self) -> Tensor | None:
        """Of the weight: dense, float64, in the weight's shape; None where there is none, as of a bias alone."""
        parts = {name: part.double() for name, part in self.parts.items()}
        if "a" in parts:
            dense = parts["b"].T @ conv_rows(parts["a"], self.spec).flatten(1)
        elif "w1" in parts:
            dense = torch.kron(parts["w1"], parts["w2"].flatten(1))
        elif "p1" in parts:
            dense = (parts["p1"] @ parts["q1"]) * (parts["p2"] @ parts["q2"])
        elif "delta" in parts:
            dense = parts["delta"]
        else:
            return None
        return self.scale * dense.reshape(self.spec.shape)


def conv_rows(a: Tensor, spec: ModuleSpec) -> Tensor:
    """A [r, K] as files have it: [r, Cin], of a convolution [r, Cin, kh, kw]."""
    if spec.kind != "conv2d":
        return a
    inputs, height, width = spec.shape[1:]
    return a.reshape(-1, height, width, inputs).permute(0, 3, 1, 2)


def flat_rows(down: Tensor, spec: ModuleSpec) -> Tensor:
    """The inverse of conv_rows; also takes [r, Cin * kh * kw]."""
    if spec.kind != "conv2d":
        return down
    return down.reshape(-1, *spec.shape[1:]).permute(0, 2, 3, 1).flatten(1)


def read_factors(path: Path, layout: Layout) -> Iterator[Factors]:
    """Of every module, in the order of their paths."""
    container = read_container(path, MAX_FILE)
    table = json.loads(container.metadata["modules"])
    entries: dict[str, dict[str, TensorEntry]] = {module: {} for module in table}
    for name, entry in container.tensors.items():
        module, _, part = name.rpartition(".")
        if module in entries:
            entries[module][part] = entry
    with path.open("rb") as handle:
        for module, row in sorted(table.items()):
            parts = {part: read_float32(handle, entry, module) for part, entry in entries[module].items()}
            yield Factors(module, layout.targets[module], parts, float(row["scale"]), row["axis"])
