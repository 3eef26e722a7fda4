"""Text embeddings of frozen text encoders, kept on disk by caption and encoder.

Takes the encoder as a function and its digest; gives tensors for a caption. Each caption is encoded alone, so that no
neighbour changes its last bits. Of no use while a text encoder trains. Knows no pictures.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loramux_train.data.tensor_files import read_tensors, write_tensors

EncodeText = Callable[[str], dict[str, Tensor]]
"""A caption to tensors [1, ...] by name, such as hidden states and, of SDXL, the pooled embedding."""


@dataclass(frozen=True, slots=True)
class TextCache:
    """Embeddings by caption. folder: where; encoder_digest: of all that `encode` uses."""

    folder: Path
    encoder_digest: str
    encode: EncodeText

    @torch.no_grad()
    def embed(self, caption: str) -> dict[str, Tensor]:
        """Tensors [1, ...] on the CPU, from disk, or encoded now and kept there. OSError if they cannot be."""
        key = hashlib.sha256(f"{self.encoder_digest}\n{caption}".encode()).hexdigest()
        path = self.folder / key[:2] / f"{key}.safetensors"
        found = read_tensors(path, key)
        if found is None:
            found = {name: tensor[0].cpu().clone() for name, tensor in self.encode(caption).items()}
            write_tensors(path, key, found)
        return {name: tensor[None] for name, tensor in found.items()}
