"""Layouts: what an adapter must fit.

Takes module tables (path, kind, weight shape); gives a Layout with a digest and a JSON form, and
the known layouts by name. Knows no tensors and no catalog.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from types import MappingProxyType
from typing import Any, Literal, cast

from loramux_store import architecture
from loramux_store.errors import InvalidArgument
from loramux_store.norms import norms_before

__all__ = ["COMPONENTS", "KNOWN_NAMES", "Layout", "ModuleSpec", "known_layout", "known_layouts"]

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
KNOWN_NAMES = ("sd1", "sd2", "sdxl", "builtin")


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """One adaptable module: weight shape (o, i) of a linear, (o, i, kh, kw) of a conv2d, (n,) of a norm."""

    kind: Literal["linear", "conv2d", "norm"]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse a shape that does not belong to the kind."""
        ndim = {"linear": 2, "conv2d": 4, "norm": 1}.get(self.kind)
        if ndim != len(self.shape) or any(size < 1 for size in self.shape):
            raise InvalidArgument("module", (self.kind, self.shape), "linear (o,i), conv2d 4-D, norm 1-D")


@dataclass(frozen=True)
class Layout:
    """A base's adaptable modules, by path (`unet.…`, `text_encoder.…`, `text_encoder_2.…`)."""

    name: str
    modules: Mapping[str, ModuleSpec]

    def __post_init__(self) -> None:
        """Freeze the table and check the paths."""
        for path in self.modules:
            if path.partition(".")[0] not in COMPONENTS:
                raise InvalidArgument("module", path, f"a path under one of {COMPONENTS}")
        object.__setattr__(self, "modules", MappingProxyType(dict(sorted(self.modules.items()))))

    @cached_property
    def digest(self) -> str:
        """Sha256 of the sorted (path, kind, shape); the name is not part of it."""
        rows = [[path, spec.kind, list(spec.shape)] for path, spec in self.modules.items()]
        return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def components(self) -> tuple[str, ...]:
        """The components that have modules here."""
        present = {path.partition(".")[0] for path in self.modules}
        return tuple(name for name in COMPONENTS if name in present)

    @cached_property
    def text_widths(self) -> Mapping[str, int]:
        """Width of a token's embedding, by text encoder."""
        first = "text_model.encoder.layers.0.self_attn.q_proj"
        found = {name: self.modules.get(f"{name}.{first}") for name in self.components}
        return {name: spec.shape[1] for name, spec in found.items() if spec is not None}

    @cached_property
    def norms(self) -> Mapping[str, ModuleSpec]:
        """The normalisations that feed the modules: they follow from those, and are not part of the digest."""
        shapes = {path: spec.shape for path, spec in self.modules.items()}
        return {path: ModuleSpec("norm", (width,)) for path, width in norms_before(shapes).items()}

    @cached_property
    def targets(self) -> Mapping[str, ModuleSpec]:
        """All that an adapter may change: modules and normalisations."""
        return {**self.modules, **self.norms}

    def __hash__(self) -> int:
        """By content, like equality."""
        return hash((self.name, self.digest))

    def to_json(self) -> str:
        """The whole layout as JSON."""
        table = {path: [spec.kind, *spec.shape] for path, spec in self.modules.items()}
        return json.dumps({"name": self.name, "modules": table}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """The inverse of to_json."""
        body = cast(dict[str, Any], json.loads(text))
        table = cast(dict[str, list[Any]], body["modules"])
        modules = {path: ModuleSpec(row[0], tuple(row[1:])) for path, row in table.items()}
        return cls(str(body["name"]), modules)


@cache
def known_layout(name: str) -> Layout:
    """A layout of KNOWN_NAMES."""
    table = architecture.modules(name)
    return Layout(
        name,
        {path: ModuleSpec("linear" if len(shape) == 2 else "conv2d", shape) for path, shape in table.items()},
    )


def known_layouts() -> tuple[Layout, ...]:
    """All layouts known without being told."""
    return tuple(known_layout(name) for name in KNOWN_NAMES)
