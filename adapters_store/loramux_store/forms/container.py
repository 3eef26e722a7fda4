"""A safetensors file, made so that the same tensors always give the same bytes.

Takes named tensors and metadata; gives its bytes, or a file that is whole or not there. Knows no adapters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["data_of", "header_of", "write_file", "write_text"]

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Tensors by name, in fp32, fp16 or bf16.

    Raises:
        FileExistsError: what is there is never replaced.
    """
    _write(path, [header_of(tensors, metadata), *data_of(tensors)])


def header_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """What stands before the data. The reference library would order metadata anew each time."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    at = 0
    for name, tensor in _ordered(tensors):
        end = at + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers lie aligned
    return len(text).to_bytes(8, "little") + text


def data_of(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The numbers, tensor by tensor, in the order of the file."""
    for _, tensor in _ordered(tensors):
        yield tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _ordered(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Wide numbers first, so that each lies at a multiple of its size; then by name."""
    return sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))


def write_text(path: Path, text: str) -> None:
    """The same for a text. Raises FileExistsError."""
    _write(path, [text.encode()])


def _write(path: Path, pieces: Sequence[bytes | memoryview]) -> None:
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
