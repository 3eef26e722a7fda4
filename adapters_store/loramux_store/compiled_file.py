"""The compiled file: a version's canonical factors, as one safetensors file of fp32 tensors `<module>.<part>`.

| part | shape | is |
|---|---|---|
| a, b | [r, K], [r, N] | rank rows: A (a convolution's K laid out [kh][kw][Cin]) and B transposed |
| w1, w2 | [a, c], [b, d] or [b, d, kh, kw] | sides of a Kronecker product |
| p1, q1, p2, q2 | [N, r], [r, K] | factors of the Hadamard product (p1 q1) * (p2 q2), K as in the weight |
| delta | as the weight | a dense delta |
| m | [N] or [Cin] | magnitudes of weight decomposition |
| weight, bias | [n] | delta of a normalisation; bias alone: of any module, its scale worked in |

and of its embeddings, the one that it is or those bundled with it, fp32 `vectors.<number>.<text encoder>`
[vectors, width].

Metadata: format, {module: {rank, scale, axis}} as JSON under modules, and [[trigger, vectors, {text encoder: width}]]
under embeddings; scale multiplies all but m and bias, axis is that of m. A seal ends the file. Takes tables of shapes;
gives the header, and says whether a file is of the current form. Knows no uploads and no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from loramux_store.errors import Refused
from loramux_store.header import read_container
from loramux_store.record import Embedding
from loramux_store.seal import SEAL, SEAL_BYTES, is_unbroken, seal_entry

__all__ = [
    "FORMAT",
    "MAX_FILE",
    "NO_FILE_OF_OURS",
    "CompiledModule",
    "file_bytes",
    "header_bytes",
    "is_current",
    "modules_said",
    "vector_name",
]

FORMAT = "6"
"""Another for other contents, or for the same that are read otherwise from a file: then all are made again."""
# Bounds the scan of our own file only: a 4 GiB upload in fp8 becomes 16 GiB of fp32.
MAX_FILE = 1 << 40
NO_FILE_OF_OURS = (OSError, Refused, ValueError, AttributeError, TypeError, KeyError)
"""What reading a file raises that is not as we write them."""


@dataclass(frozen=True, slots=True)
class CompiledModule:
    """What the file says of a module; parts: {name: shape} in the order of the data."""

    path: str
    rank: int
    scale: float
    axis: str
    parts: Mapping[str, tuple[int, ...]]


def vector_name(number: int, encoder: str) -> str:
    """Of the tensor with an embedding's vectors for a text encoder."""
    return f"vectors.{number}.{encoder}"


def header_bytes(modules: Sequence[CompiledModule], embeddings: Sequence[Embedding]) -> bytes:
    """Length and JSON; the data follow: the parts of each module in this order, the vectors of each embedding in the
    order of its widths, then the seal."""
    table = {module.path: {"rank": module.rank, "scale": module.scale, "axis": module.axis} for module in modules}
    header: dict[str, object] = {
        "__metadata__": {
            "format": FORMAT,
            "modules": json.dumps(table, separators=(",", ":"), allow_nan=False),
            "embeddings": _said(embeddings),
        }
    }
    at = 0
    for name, shape in _shapes(modules, embeddings):
        end = at + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    header[SEAL] = seal_entry(at)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the floats lie aligned
    return len(text).to_bytes(8, "little") + text


def file_bytes(modules: Sequence[CompiledModule], embeddings: Sequence[Embedding]) -> int:
    """How large the file becomes."""
    data = sum(4 * prod(shape) for _, shape in _shapes(modules, embeddings))
    return len(header_bytes(modules, embeddings)) + data + SEAL_BYTES


def _shapes(
    modules: Sequence[CompiledModule], embeddings: Sequence[Embedding]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for module in modules:
        for name, shape in module.parts.items():
            yield f"{module.path}.{name}", shape
    for number, embedding in enumerate(embeddings):
        for encoder, width in embedding.widths.items():
            yield vector_name(number, encoder), (embedding.vectors, width)


def _said(embeddings: Sequence[Embedding]) -> str:
    rows = [[each.trigger, each.vectors, dict(each.widths)] for each in embeddings]
    return json.dumps(rows, separators=(",", ":"))


def is_current(path: Path, ranks: Mapping[str, int], embeddings: Sequence[Embedding]) -> bool:
    """Whether the file is there, of this form, of these modules and embeddings, and unbroken."""
    try:
        metadata = read_container(path, MAX_FILE).metadata
        return modules_said(metadata, ranks, embeddings) is not None and is_unbroken(path)
    except NO_FILE_OF_OURS:
        return False


def modules_said(
    metadata: Mapping[str, str], ranks: Mapping[str, int], embeddings: Sequence[Embedding]
) -> Mapping[str, Mapping[str, Any]] | None:
    """What a header says of its modules; None unless it is of this form, of these modules and embeddings."""
    if metadata.get("format") != FORMAT or metadata.get("embeddings") != _said(embeddings):
        return None
    table = json.loads(metadata["modules"])
    return table if {module: row["rank"] for module, row in table.items()} == dict(ranks) else None
