"""The compiled file of an embedding: a safetensors file with one tensor a text encoder, `text_encoder` and
`text_encoder_2`, each fp32 [vectors, width], and a seal.

Takes an Embedding; gives the file's beginning, and says whether a file is of the current form. Knows no uploads and no
torch.
"""

from __future__ import annotations

import json
from pathlib import Path

from loramux_store.errors import Refused
from loramux_store.header import read_container
from loramux_store.record import Embedding
from loramux_store.seal import SEAL, is_unbroken, seal_entry

__all__ = ["FORMAT", "header_bytes", "is_current"]

FORMAT = "embedding-3"


def header_bytes(embedding: Embedding) -> bytes:
    """Length and JSON; the data follow in the order of `embedding.widths`, then the seal."""
    header: dict[str, object] = {"__metadata__": {"format": FORMAT}}
    at = 0
    for encoder, width in embedding.widths.items():
        end = at + 4 * embedding.vectors * width
        header[encoder] = {"dtype": "F32", "shape": [embedding.vectors, width], "data_offsets": [at, end]}
        at = end
    header[SEAL] = seal_entry(at)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the floats lie aligned
    return len(text).to_bytes(8, "little") + text


def is_current(path: Path, embedding: Embedding) -> bool:
    """Whether the file is there, of this form, of these vectors and unbroken."""
    try:
        container = read_container(path)
        unbroken = is_unbroken(path)
    except (OSError, Refused):
        return False
    found = {name: (entry.dtype, entry.shape) for name, entry in container.tensors.items() if name != SEAL}
    wanted = {name: ("F32", (embedding.vectors, width)) for name, width in embedding.widths.items()}
    return unbroken and container.metadata.get("format") == FORMAT and found == wanted
