"""Captions with new words as a text encoder reads them.

Takes captions, a tokenizer and how many vectors each word has; gives ids, and the places where vectors stand in their
stead. The tokenizer and its table stay as they are. Knows no vectors.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loramux_train.tokens.words import Words

_PLACEHOLDER = 0
"""An id where a vector goes in: it is no end, by which CLIP finds its pooled embedding."""


@dataclass(frozen=True, slots=True)
class Placed:
    """ids: [n, length]. Vector number vectors[i] stands at [rows[i], columns[i]]."""

    ids: Tensor
    rows: Tensor
    columns: Tensor
    vectors: Tensor


def read(tokenizer: Any, captions: Sequence[str], words: Words, counts: Sequence[int]) -> Placed:
    """Padded ids with their places; what is longer than the tokenizer's length is cut.

    counts: vectors of each word; those of a word follow those of the word before it.
    """
    room = tokenizer.model_max_length - 2
    ids: list[list[int]] = []
    places: list[tuple[int, int, int]] = []
    for row, caption in enumerate(captions):
        tokens = sequence(tokenizer, caption, words, counts)[:room]
        places += [(row, column, -token - 1) for column, token in enumerate(tokens, start=1) if token < 0]
        plain = [_PLACEHOLDER if token < 0 else token for token in tokens]
        padding = [tokenizer.pad_token_id] * (room - len(tokens))
        ids.append([tokenizer.bos_token_id, *plain, tokenizer.eos_token_id, *padding])
    rows, columns, vectors = torch.tensor(places, dtype=torch.long).reshape(-1, 3).unbind(dim=1)
    return Placed(torch.tensor(ids), rows, columns, vectors)


def sequence(tokenizer: Any, caption: str, words: Words, counts: Sequence[int]) -> list[int]:
    """Ids between start and end, uncut; -1 - v stands for vector number v."""
    tokens: list[int] = []
    for piece in words.split(caption):
        if isinstance(piece, int):
            first = sum(counts[:piece])
            tokens += [-1 - vector for vector in range(first, first + counts[piece])]
        else:
            tokens += tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
    return tokens


@contextmanager
def put_in(table: nn.Module, placed: Placed, vectors: Tensor) -> Generator[None]:
    """Within it the table's embeddings [n, length, width] are `vectors` [m, width] where they are placed."""
    if not len(placed.rows):
        yield
        return
    device = vectors.device
    where, which = (placed.rows.to(device), placed.columns.to(device)), placed.vectors.to(device)

    def replaced(_table: nn.Module, _given: Any, looked_up: Tensor) -> Tensor:
        return looked_up.index_put(where, vectors[which].to(looked_up.dtype))

    handle = table.register_forward_hook(replaced)
    try:
        yield
    finally:
        handle.remove()
