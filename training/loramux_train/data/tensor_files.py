"""Small safetensors files of a cache: whole or not there.

Takes named tensors and the key they belong to; gives them back, or None for whatever is not exactly what was written.
Knows not what they are.
"""

import hashlib
import os
import threading
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

Tensors = dict[str, Tensor]


def write_tensors(path: Path, key: str, tensors: Tensors) -> None:
    """Written beside and renamed. Nothing waits for the disk: what a power cut damages is told by its digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        beside.write_bytes(save(whole, {"key": key, "sha256": _digest(whole)}))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_tensors(path: Path, key: str) -> Tensors | None:
    """What was written under the key, or None if there is no such file, or a damaged one."""
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (OSError, SafetensorError):
        return None
    return tensors if said == {"key": key, "sha256": _digest(tensors)} else None


def _digest(tensors: Tensors) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
