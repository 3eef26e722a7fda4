"""Text embeddings of frozen text encoders, kept by caption and encoder.

Takes the encoder as a function and its digest; gives tensors for captions. Each caption is encoded alone, so that no
neighbour changes its last bits. Of no use while a text encoder trains. Knows no pictures.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from loramux_train.data.tensor_files import read_tensors, write_tensors

EncodeText = Callable[[Sequence[str]], dict[str, Tensor]]
"""n captions to tensors [n, ...] by name, such as hidden states and, of SDXL, the pooled embedding."""


_MOST = 1000  # in memory: a quarter of a gigabyte of Stable Diffusion 1's


@dataclass(frozen=True, slots=True)
class TextCache:
    """Embeddings by caption. folder: where; None keeps them in memory. encoder_digest: of all that `encode` uses."""

    folder: Path | None
    encoder_digest: str
    encode: EncodeText
    _kept: dict[str, dict[str, Tensor]] = field(default_factory=dict[str, dict[str, Tensor]], repr=False)

    def embed(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Tensors [len(captions), ...] on the CPU. ValueError without captions, or if their shapes differ."""
        if not captions:
            raise ValueError("no captions to embed")
        each = [self._one(caption) for caption in captions]
        shapes = [{name: tuple(tensor.shape) for name, tensor in embedding.items()} for embedding in each]
        first = shapes[0]
        if any(shape != first for shape in shapes):
            raise ValueError(f"embeddings of different shapes cannot be one batch: {shapes}")
        return {name: torch.stack([embedding[name] for embedding in each]) for name in first}

    def fill(self, captions: Iterable[str]) -> None:
        """Encode what is not there yet."""
        for caption in dict.fromkeys(captions):
            self._one(caption)

    @torch.no_grad()
    def _one(self, caption: str) -> dict[str, Tensor]:
        key = hashlib.sha256(f"{self.encoder_digest}\n{caption}".encode()).hexdigest()
        if key in self._kept:
            return self._kept[key]
        path = None if self.folder is None else self.folder / key[:2] / f"{key}.safetensors"
        found = None if path is None else read_tensors(path, key)
        if found is None:
            found = {name: tensor[0].cpu().clone() for name, tensor in self.encode([caption]).items()}
            if path is not None:
                write_tensors(path, key, found)
        if path is None:
            while len(self._kept) >= _MOST:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = found
        return found
