"""Prompts to embeddings, with the blend's text-encoder rows, cached.

Takes a text, how it is to be read and what the blend adds in the text encoder; gives embeddings. It knows no request
and no queue.

A prompt longer than the text encoder's 75 tokens is encoded in chunks of 75, each between its own start and end, and
their embeddings follow one another. A weight w moves the embedding e of its token along the line from that of no text,
n + w (e - n): 0 takes the token out, 1 leaves it, and nothing is divided by what may be zero.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from loramux_kernels import Entries
from loramux_server.engine.blends import EVERYWHERE
from loramux_server.engine.lora_layers import LayerGroup
from loramux_server.engine.pipeline import Base
from loramux_server.engine.prompt_syntax import Piece, parse
from loramux_server.errors import Violation
from loramux_server.requests import LongPrompt, PromptSyntax, TextMode

CACHE_BYTES = 64 << 20
MAX_CHUNKS = 8


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens between one start and one end, with their weights."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class BlendedText:
    """A text and what the blend adds in the text encoder.

    entries: (rank row, scale) pairs; blend_key: what tells them apart for good (row numbers are reused): the digests
    and weights behind them.
    """

    text: str
    entries: Entries = ()
    blend_key: Hashable = ()


class PromptEncoder:
    """The text encoder behind a cache of the most recently used embeddings.

    One text at a time: the embeddings of a text then never depend on what is encoded beside it.
    """

    def __init__(self, base: Base, group: LayerGroup, cache_bytes: int = CACHE_BYTES) -> None:
        self._base = base
        self._group = group
        self._cache_bytes = cache_bytes
        self._bytes = 0
        self._cache: OrderedDict[Hashable, Tensor] = OrderedDict()

    def violations(self, prompts: dict[str, str], mode: TextMode) -> list[Violation]:
        """What is wrong with prompts by field: too many chunks, or more layers skipped than there are."""
        found: list[Violation] = []
        layers = self._base.text_encoder.config.num_hidden_layers
        if not 0 <= mode.clip_skip < layers:
            found.append(Violation("clip_skip", f"is {mode.clip_skip}, expected 0 to {layers - 1} on this base"))
        for field, text in prompts.items():
            count = len(self._chunks(text, mode))
            if count > MAX_CHUNKS:
                room = self._room
                found.append(Violation(field, f"takes {count} chunks of {room} tokens, expected at most {MAX_CHUNKS}"))
        return found

    def encode(self, texts: Sequence[BlendedText], mode: TextMode) -> Tensor:
        """Embeddings [texts, tokens, width]; texts of fewer chunks are filled up with chunks of no text."""
        encoded = [self._embeddings(text, mode) for text in texts]
        longest = max(embeddings.shape[1] for embeddings in encoded)
        return torch.cat([self._filled(text, mode, longest) for text in texts])

    def _filled(self, text: BlendedText, mode: TextMode, length: int) -> Tensor:
        embeddings = self._embeddings(text, mode)
        if embeddings.shape[1] == length:
            return embeddings
        nothing = self._embeddings(replace(text, text=""), mode)
        return torch.cat([embeddings, *[nothing] * ((length - embeddings.shape[1]) // nothing.shape[1])], dim=1)

    def _embeddings(self, text: BlendedText, mode: TextMode) -> Tensor:
        key = (text.text, mode, text.blend_key)
        if key not in self._cache:
            with self._group.adding([{EVERYWHERE: text.entries}]):
                chunks = [self._encode(chunk, mode.clip_skip) for chunk in self._chunks(text.text, mode)]
            self._store(key, torch.cat(chunks, dim=1))
        self._cache.move_to_end(key)
        return self._cache[key]

    @property
    def _room(self) -> int:
        """Tokens of a chunk between its start and its end."""
        return self._base.tokenizer.model_max_length - 2

    def _chunks(self, text: str, mode: TextMode) -> list[Chunk]:
        """At least one; only the first where long prompts are cut."""
        sections = parse(text) if mode.syntax == PromptSyntax.WEIGHTED else ((Piece(text, 1.0),),)
        chunks = [chunk for section in sections for chunk in self._section(section)]
        return chunks[:1] if mode.long_prompt == LongPrompt.CUT else chunks

    def _section(self, pieces: Sequence[Piece]) -> Iterator[Chunk]:
        tokens: list[int] = []
        weights: list[float] = []
        for piece in pieces:
            ids = self._tokens(piece.text)
            tokens += ids
            weights += [piece.weight] * len(ids)
        for start in range(0, max(1, len(tokens)), self._room):
            part = slice(start, start + self._room)
            yield Chunk(tuple(tokens[part]), tuple(weights[part]))

    def _tokens(self, text: str) -> list[int]:
        # verbose: the tokenizer would warn of every text longer than a chunk
        return cast("list[int]", self._base.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def _encode(self, chunk: Chunk, clip_skip: int) -> Tensor:
        """Embeddings [1, tokens, width] of one chunk."""
        tokenizer: Any = self._base.tokenizer
        padding = self._room - len(chunk.tokens)
        ids = [
            tokenizer.bos_token_id, *chunk.tokens, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * padding
        ]  # fmt: skip
        embeddings = self._hidden(torch.tensor([ids], device=self._base.device), clip_skip)
        if all(weight == 1 for weight in chunk.weights):
            return embeddings
        nothing = self._encode(Chunk((), ()), clip_skip)
        weights = torch.tensor([1.0, *chunk.weights, 1.0, *[1.0] * padding], device=self._base.device)
        return torch.lerp(nothing.float(), embeddings.float(), weights[None, :, None]).to(embeddings.dtype)

    def _hidden(self, ids: Tensor, clip_skip: int) -> Tensor:
        """The last hidden state, or that of the layer `clip_skip` before it through the final normalisation."""
        encoder: Any = self._base.text_encoder
        if clip_skip == 0:
            return encoder(ids).last_hidden_state
        hidden = encoder(ids, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
        return getattr(encoder, "text_model", encoder).final_layer_norm(hidden)

    def _store(self, key: Hashable, embeddings: Tensor) -> None:
        self._cache[key] = embeddings
        self._bytes += embeddings.nbytes
        while self._bytes > self._cache_bytes and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._bytes -= oldest.nbytes
