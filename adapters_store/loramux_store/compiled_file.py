"""The compiled file: a version's canonical factors, as one safetensors file of fp32 tensors `<module>.<part>`.

| part | shape | is |
|---|---|---|
| a, b | [r, K], [r, N] | rank rows: A (a convolution's K laid out [kh][kw][Cin]) and B transposed |
| w1, w2 | [a, c], [b, d] or [b, d, kh, kw] | sides of a Kronecker product |
| p1, q1, p2, q2 | [N, r], [r, K] | factors of the Hadamard product (p1 q1) * (p2 q2), K as in the weight |
| delta | as the weight | a dense delta |
| m | [N] or [Cin] | magnitudes of weight decomposition |
| weight, bias | [n] | delta of a normalisation; bias alone: of any module, its scale worked in |

Metadata: format, and {module: {rank, scale, axis}} as JSON under modules; scale multiplies all but m and bias, axis is
that of m. A seal ends the file. Takes tables of shapes; gives the header, and says whether a file is of the current
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
from loramux_store.seal import SEAL, is_unbroken, seal_entry

__all__ = ["FORMAT", "MAX_FILE", "CompiledModule", "header_bytes", "is_current"]

FORMAT = "4"
# Bounds the scan of our own file only: a 4 GiB upload in fp8 becomes 16 GiB of fp32.
MAX_FILE = 1 << 40


@dataclass(frozen=True, slots=True)
class CompiledModule:
    """What the file says of a module; parts: {name: shape} in the order of the data."""

    path: str
    rank: int
    scale: float
    axis: str
    parts: Mapping[str, tuple[int, ...]]


def header_bytes(modules: list[CompiledModule]) -> bytes:
    """Length and JSON; the data follow, the parts of each module in this order, then the seal."""
    table = {module.path: {"rank": module.rank, "scale": module.scale, "axis": module.axis} for module in modules}
    header: dict[str, object] = {
        "__metadata__": {
            "format": FORMAT,
            "modules": json.dumps(table, separators=(",", ":"), allow_nan=False),
        }
    }
    at = 0
    for module in modules:
        for name, shape in module.parts.items():
            end = at + 4 * prod(shape)
            header[f"{module.path}.{name}"] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
            at = end
    header[SEAL] = seal_entry(at)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the floats lie aligned
    return len(text).to_bytes(8, "little") + text


def is_current(path: Path, ranks: Mapping[str, int]) -> bool:
    """Whether the file is there, of this form and of these modules, and unbroken."""
    try:
        container = read_container(path, MAX_FILE)
        table = json.loads(container.metadata.get("modules", "null"))
        found = {module: row["rank"] for module, row in table.items()}
        unbroken = container.metadata.get("format") == FORMAT and is_unbroken(path)
    except (OSError, Refused, ValueError, AttributeError, TypeError, KeyError):
        return False
    return unbroken and found == dict(ranks)
