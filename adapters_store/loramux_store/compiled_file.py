"""The compiled file: a version's canonical factors, as one safetensors file.

`<module>.a` is A, fp32 [r, K] (a convolution's K laid out [kh][kw][Cin]); `<module>.b` is B
transposed, fp32 [r, N]. Metadata: format, and {module: {rank, scale}} as JSON under modules. A seal ends it.
Takes tables of shapes and buffers; gives the file, and says whether a file is of the current
form. Knows no uploads and no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from loramux_store.errors import Refused
from loramux_store.header import read_container
from loramux_store.layout import ModuleSpec
from loramux_store.seal import SEAL, is_unbroken, seal_entry

__all__ = ["FORMAT", "CompiledModule", "header_bytes", "is_current"]

FORMAT = "2"
# Bounds the scan of our own file only: a 4 GiB upload in fp8 becomes 16 GiB of fp32.
_MAX_FILE = 1 << 40


@dataclass(frozen=True, slots=True)
class CompiledModule:
    """What the file says of a module."""

    path: str
    rank: int
    scale: float
    inputs: int
    outputs: int

    @classmethod
    def of(cls, path: str, spec: ModuleSpec, rank: int, scale: float) -> CompiledModule:
        """K and N from the layout's weight shape."""
        return cls(path, rank, scale, prod(spec.shape[1:]), spec.shape[0])


def header_bytes(modules: list[CompiledModule]) -> bytes:
    """Length and JSON; the data follow as a then b of each module, in this order, then the seal."""
    table = {module.path: {"rank": module.rank, "scale": module.scale} for module in modules}
    header: dict[str, object] = {
        "__metadata__": {
            "format": FORMAT,
            "modules": json.dumps(table, separators=(",", ":"), allow_nan=False),
        }
    }
    at = 0
    for module in modules:
        for name, width in (("a", module.inputs), ("b", module.outputs)):
            end = at + 4 * module.rank * width
            header[f"{module.path}.{name}"] = {
                "dtype": "F32",
                "shape": [module.rank, width],
                "data_offsets": [at, end],
            }
            at = end
    header[SEAL] = seal_entry(at)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the floats lie aligned
    return len(text).to_bytes(8, "little") + text


def is_current(path: Path, ranks: Mapping[str, int]) -> bool:
    """Whether the file is there, of this form and of these modules, and unbroken."""
    try:
        container = read_container(path, _MAX_FILE)
        table = json.loads(container.metadata.get("modules", "null"))
        found = {module: row["rank"] for module, row in table.items()}
        unbroken = container.metadata.get("format") == FORMAT and is_unbroken(path)
    except (OSError, Refused, ValueError, AttributeError, TypeError, KeyError):
        return False
    return unbroken and found == dict(ranks)
