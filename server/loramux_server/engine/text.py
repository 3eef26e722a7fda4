"""Prompts to embeddings, with what the blend does in the text encoder, cached.

Takes a text, how it is to be read, the rank rows that the blend adds and the vectors that stand for triggers; gives
embeddings. It knows no request and no queue.

A prompt longer than the text encoder's 75 tokens is encoded in chunks of 75, each between its own start and end, and
their embeddings follow one another. A weight w moves the embedding e of its token along the line from that of no text,
n + w (e - n): 0 takes the token out, 1 leaves it, and nothing is divided by what may be zero.

A trigger's vectors take the places of tokens, one each, and go in where the token table's own vectors come out: the
tokenizer and the table stay as they are, and a text without triggers is read as if there were no embeddings.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from loramux_server.engine.blends import EVERYWHERE, NOTHING, Added
from loramux_server.engine.bytes_lru import BytesLru
from loramux_server.engine.chunks import fill
from loramux_server.engine.inversions import PLACEHOLDER, Inversion, Token, Vector, put_in
from loramux_server.engine.layer_group import LayerGroup
from loramux_server.engine.pipeline import TextEncoder
from loramux_server.engine.prompt_syntax import Piece, parse
from loramux_server.engine.triggers import Trigger, split
from loramux_server.errors import Violation
from loramux_server.requests import LongPrompt, PromptSyntax, TextMode

MAX_CHUNKS = 8
_KEPT = 32  # texts, each read several times while it is checked and again to encode it; of 10 000 characters at most


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens between one start and one end, with their weights."""

    tokens: tuple[Token, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class BlendedText:
    """A text and what the blend adds in the text encoder.

    entries: numbers and weights; inversions: the embeddings; blend_key: what tells both apart for good (numbers are
    reused): the digests and weights behind them.
    """

    text: str
    entries: Added = NOTHING
    blend_key: Hashable = ()
    inversions: tuple[Inversion, ...] = ()

    @property
    def triggers(self) -> tuple[Trigger, ...]:
        """Those of the embeddings, in their order."""
        return tuple(Trigger(each.trigger, len(each.vectors)) for each in self.inversions)


@dataclass(frozen=True, slots=True)
class Encoded:
    """hidden [texts, tokens, width]; pooled [texts, projection], where the text encoder has a projection."""

    hidden: Tensor
    pooled: Tensor | None

    @property
    def nbytes(self) -> int:
        """Of memory."""
        return self.hidden.nbytes + (0 if self.pooled is None else self.pooled.nbytes)


class PromptEncoder:
    """One text encoder behind a cache of the most recently used embeddings, which all text encoders share.

    One text at a time: the embeddings of a text then never depend on what is encoded beside it.
    skips_last_layer: embeddings are those of the layer before the last, without the final normalisation.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        group: LayerGroup,
        device: torch.device,
        cache: BytesLru[Encoded],
        *,
        skips_last_layer: bool,
    ) -> None:
        self.name = encoder.name
        self._encoder = encoder
        self._group = group
        self._device = device
        self._cache = cache
        self._skips_last_layer = skips_last_layer
        self._kept = lru_cache(_KEPT)(self._read)

    def violations(self, prompts: Mapping[str, tuple[str, Sequence[Trigger]]], mode: TextMode) -> list[Violation]:
        """What is wrong with prompts by field, each with its triggers: too many chunks, or more layers skipped than
        there are."""
        found: list[Violation] = []
        most = self._encoder.layers - 1 - self._skips_last_layer
        if not 0 <= mode.clip_skip <= most:
            found.append(Violation("clip_skip", f"is {mode.clip_skip}, expected 0 to {most} on this base"))
        for field, (text, triggers) in prompts.items():
            count = self.count(text, mode, triggers)
            if count > MAX_CHUNKS:
                room = self._room
                found.append(Violation(field, f"takes {count} chunks of {room} tokens, expected at most {MAX_CHUNKS}"))
        return found

    def count(self, text: str, mode: TextMode, triggers: Sequence[Trigger] = ()) -> int:
        """Chunks of a text."""
        return len(self._chunks(text, mode, triggers))

    def found(self, text: str, mode: TextMode, triggers: Sequence[Trigger]) -> set[int]:
        """Indices of the triggers that stand in what is read of a text."""
        chunks = self._chunks(text, mode, triggers)
        return {token.embedding for chunk in chunks for token in chunk.tokens if isinstance(token, Vector)}

    def encode(self, texts: Sequence[BlendedText], mode: TextMode, chunks: int) -> Encoded:
        """Embeddings [texts, chunks * tokens, width], and projections [texts, width] of first chunks, where the text
        encoder has a projection; texts of fewer chunks are filled up with chunks of no text."""
        found = [self._filled(text, mode, chunks) for text in texts]
        pooled = [each.pooled for each in found if each.pooled is not None]
        return Encoded(torch.cat([each.hidden for each in found]), torch.cat(pooled) if pooled else None)

    def _filled(self, text: BlendedText, mode: TextMode, chunks: int) -> Encoded:
        encoded = self._encoded(text, mode)
        missing = chunks - self.count(text.text, mode, text.triggers)
        if missing == 0:
            return encoded
        filling = [self._encoded(replace(text, text=""), mode).hidden] * missing
        return replace(encoded, hidden=torch.cat([encoded.hidden, *filling], dim=1))

    def _encoded(self, text: BlendedText, mode: TextMode) -> Encoded:
        key = (self.name, text.text, mode, text.blend_key)
        return self._cache.get(key, lambda: self._run_chunks(text, mode))

    def _run_chunks(self, text: BlendedText, mode: TextMode) -> Encoded:
        with self._group.adding([{EVERYWHERE: text.entries}]):
            chunks = [
                self._encode(chunk, mode.clip_skip, text.inversions)
                for chunk in self._chunks(text.text, mode, text.triggers)
            ]
        return Encoded(torch.cat([chunk.hidden for chunk in chunks], dim=1), chunks[0].pooled)

    @property
    def _room(self) -> int:
        """Tokens of a chunk between its start and its end."""
        return self._encoder.tokenizer.model_max_length - 2

    def _chunks(self, text: str, mode: TextMode, triggers: Sequence[Trigger]) -> tuple[Chunk, ...]:
        """At least one; only the first where long prompts are cut."""
        return self._kept(text, mode, tuple(triggers))

    def _read(self, text: str, mode: TextMode, triggers: tuple[Trigger, ...]) -> tuple[Chunk, ...]:
        sections = parse(text) if mode.syntax == PromptSyntax.WEIGHTED else ((Piece(text, 1.0),),)
        chunks = tuple(chunk for section in sections for chunk in self._section(section, triggers))
        return chunks[:1] if mode.long_prompt == LongPrompt.CUT else chunks

    def _section(self, pieces: Sequence[Piece], triggers: Sequence[Trigger]) -> Iterator[Chunk]:
        runs = (
            [(token, piece.weight) for token in run] for piece in pieces for run in self._runs(piece.text, triggers)
        )
        for chunk in fill(runs, self._room):
            yield Chunk(tuple(token for token, _ in chunk), tuple(weight for _, weight in chunk))

    def _runs(self, text: str, triggers: Sequence[Trigger]) -> Iterator[Sequence[Token]]:
        """Tokens one by one, and all vectors of an embedding together."""
        for part in split(text, [trigger.text for trigger in triggers]):
            if isinstance(part, int):
                yield [Vector(part, index) for index in range(triggers[part].vectors)]
            else:
                yield from ([token] for token in self._tokens(part))

    def _tokens(self, text: str) -> list[int]:
        # verbose: the tokenizer would warn of every text longer than a chunk
        return cast("list[int]", self._encoder.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def _encode(self, chunk: Chunk, clip_skip: int, inversions: Sequence[Inversion] = ()) -> Encoded:
        """One chunk; weights move hidden states, not the projection."""
        tokenizer: Any = self._encoder.tokenizer
        padding = self._room - len(chunk.tokens)
        tokens = [PLACEHOLDER if isinstance(token, Vector) else token for token in chunk.tokens]
        ids = [
            tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * padding
        ]  # fmt: skip
        with put_in(self._encoder, chunk.tokens, inversions):
            encoded = self._run(torch.tensor([ids], device=self._device), clip_skip)
        if all(weight == 1 for weight in chunk.weights):
            return encoded
        nothing = self._encode(Chunk((), ()), clip_skip).hidden
        weights = torch.tensor([1.0, *chunk.weights, 1.0, *[1.0] * padding], device=self._device)
        hidden = torch.lerp(nothing.float(), encoded.hidden.float(), weights[None, :, None]).to(nothing.dtype)
        return replace(encoded, hidden=hidden)

    def _run(self, ids: Tensor, clip_skip: int) -> Encoded:
        """The hidden state that the base reads, or that of the layer `clip_skip` before it, and the projection.

        The last layer and those that take its place go through the final normalisation.
        """
        model: Any = self._encoder.model
        skipped = clip_skip + self._skips_last_layer
        output = model(ids, output_hidden_states=skipped > 0)
        pooled = getattr(output, "text_embeds", None)
        if skipped == 0:
            return Encoded(output.last_hidden_state, pooled)
        hidden = output.hidden_states[-(skipped + 1)]
        if not self._skips_last_layer:
            hidden = getattr(model, "text_model", model).final_layer_norm(hidden)
        return Encoded(hidden, pooled)
