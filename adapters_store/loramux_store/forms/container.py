"""A safetensors file, written so that the same tensors always give the same bytes.

Takes named tensors and metadata; gives a file that is whole or not there. Knows no adapters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from loramux_store.formats.convert import as_bytes

__all__ = ["write_file", "write_text"]


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """fp32 tensors by name. The reference library would order metadata anew each time.

    Raises:
        FileExistsError: what is there is never replaced.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    at = 0
    for name, tensor in sorted(tensors.items()):
        end = at + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the floats lie aligned
    _write(path, [len(text).to_bytes(8, "little") + text, *(as_bytes(tensors[name]) for name in sorted(tensors))])


def write_text(path: Path, text: str) -> None:
    """The same for a text. Raises FileExistsError."""
    _write(path, [text.encode()])


def _write(path: Path, pieces: list[bytes | memoryview]) -> None:
    if path.exists():
        raise FileExistsError(f"{path} is there already; nothing is replaced")
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with draft.open("xb") as handle:
            for piece in pieces:
                handle.write(piece)
            handle.flush()
            os.fsync(handle.fileno())
        _publish(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _publish(draft: Path, path: Path) -> None:
    """Unlike a rename, a link never takes another's place; not every file system has links."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:
        draft.rename(path)
