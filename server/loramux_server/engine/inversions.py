"""An embedding's vectors in the places of tokens, in one text encoder.

Takes a text encoder, the tokens of a chunk and the embeddings in it; for the calls made meanwhile, the token table
gives their vectors where they stand. The tokenizer and the table stay as they are. It knows no text and no blend.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loramux_server.engine.pipeline import TextEncoder

PLACEHOLDER = 0
"""A token number where a vector goes in: neither the end's nor above it, by which CLIP finds the end."""


@dataclass(frozen=True, slots=True)
class Vector:
    """What stands in a token's place: vector number `index` of embedding number `embedding`."""

    embedding: int
    index: int


Token = int | Vector


@dataclass(frozen=True, slots=True, eq=False)
class Inversion:
    """An embedding that acts: vectors [n, width] in fp32, times factor, in the place of its trigger."""

    trigger: str
    vectors: Tensor
    factor: float


@contextmanager
def put_in(encoder: TextEncoder, tokens: Sequence[Token], inversions: Sequence[Inversion]) -> Generator[None]:
    """Within it the encoder reads one text a call: a start, then `tokens`. Vectors are scaled in fp32."""
    placed = {place: token for place, token in enumerate(tokens, start=1) if isinstance(token, Vector)}
    if not placed:
        yield
        return
    table: nn.Module = encoder.model.get_input_embeddings()
    rows = [inversions[at.embedding].vectors[at.index] * inversions[at.embedding].factor for at in placed.values()]
    vectors = torch.stack(rows)[None]
    places = torch.tensor(list(placed), device=vectors.device)

    def replaced(_table: nn.Module, _given: Any, looked_up: Tensor) -> Tensor:
        return looked_up.index_copy(1, places, vectors.to(looked_up.dtype))

    handle = table.register_forward_hook(replaced)
    try:
        yield
    finally:
        handle.remove()
