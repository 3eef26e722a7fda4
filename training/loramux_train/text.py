"""What a UNet is told of captions: text embeddings, and SDXL's sizes.

Takes captions and sizes; gives tensors of a batch. While text encoders are frozen every caption is encoded once, alone,
so that its embedding does not depend on the batch it was first seen in; captions with new words that still learn are
encoded at every use. Knows no noise and no loss.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loramux_train.base import Base
from loramux_train.batch import Sizes
from loramux_train.data.latent_cache import module_digest
from loramux_train.data.text_cache import TextCache
from loramux_train.token_settings import TokenSettings
from loramux_train.tokens.vectors import Tokens

CACHE_BYTES = 1 << 30
"""Of embeddings kept in memory; the least recently used go first. 4,500 captions of SD 1.5 in fp32."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """context: [n, tokens, width]; pooled: [n, width] of SDXL's second encoder, else None."""

    context: Tensor
    pooled: Tensor | None


class Text:
    """The text encoders of a base. training: whether embeddings carry gradients to the encoders' factors."""

    def __init__(self, base: Base, tokens: Tokens | None = None) -> None:
        self._base = base
        self._tokens = Tokens(base, TokenSettings(), 0) if tokens is None else tokens
        self._kept: TextCache | None = None
        self._known: OrderedDict[str, Embedded] = OrderedDict()
        self._bytes = 0
        self._settled = False
        self.training = False

    def keep(self, folder: Path) -> None:
        """Keep embeddings on disk too, for later runs; only of encoders that no factors were put into."""
        whole = hashlib.sha256()
        for encoder, tokenizer in zip(self._base.text_encoders, self._base.tokenizers, strict=True):
            whole.update(
                f"{module_digest(encoder)} {tokenizer.backend_tokenizer.to_str()} {tokenizer.pad_token}".encode()
            )
        self._kept = TextCache(folder, whole.hexdigest(), lambda caption: _named(self._encode([caption])))

    def train(self, training: bool, settled: bool = False) -> None:
        """Say whether the encoders change from now on; what was known of captions is forgotten when that turns.

        settled: whether the vectors of new words are those they will be whenever this is said again; only then are
        captions with such words remembered.
        """
        self._settled = settled
        if training != self.training:
            self._known.clear()
            self._bytes = 0
        self.training = training
        for encoder in self._base.text_encoders:
            encoder.train(training)

    @contextmanager
    def apart(self) -> Generator[None]:
        """Within it the encoders' factors are others than those of the steps: nothing that was remembered of captions
        is used, and nothing is remembered."""
        known, held = self._known, self._bytes
        self._known, self._bytes = OrderedDict(), 0
        try:
            yield
        finally:
            self._known, self._bytes = known, held

    def embed(self, captions: Sequence[str]) -> Embedded:
        """The embeddings of captions, in their order."""
        if self.training:
            return self._encode(captions)
        changing = [caption for caption in captions if not self._settled and self._tokens.words.within(caption)]
        fresh = iter(_apart(self._encode(changing))) if changing else iter(())
        rows = [next(fresh) if caption in changing else self._remembered(caption) for caption in captions]
        pooled = [row.pooled for row in rows if row.pooled is not None]
        return Embedded(torch.cat([row.context for row in rows]), torch.cat(pooled) if pooled else None)

    def read(self, text: str) -> Embedded:
        """A text as the encoders and the new words' vectors are now; remembers nothing."""
        return self._encode([text])

    def conditions(self, captions: Sequence[str], sizes: Sequence[Sizes], latent: tuple[int, int]) -> dict[str, Any]:
        """The arguments of the UNet's forward for a batch; latent: height and width of its latents."""
        embedded = self.embed(captions)
        arguments: dict[str, Any] = {"encoder_hidden_states": embedded.context}
        if embedded.pooled is not None:
            target = [extent * self._base.outline.pixels_per_latent for extent in latent]
            numbers = [[s.height, s.width, s.top, s.left, *target] for s in sizes]
            ids = torch.tensor(numbers, dtype=embedded.pooled.dtype, device=embedded.pooled.device)
            arguments["added_cond_kwargs"] = {"text_embeds": embedded.pooled, "time_ids": ids}
        return arguments

    def _remembered(self, caption: str) -> Embedded:
        found = self._known.pop(caption, None)
        if found is None:
            with torch.no_grad():
                kept = None if self._tokens.words.within(caption) else self._kept
                found = self._encode([caption]) if kept is None else self._from_disk(kept, caption)
            self._bytes += _nbytes(found)
        self._known[caption] = found
        while self._bytes > CACHE_BYTES and len(self._known) > 1:
            self._bytes -= _nbytes(self._known.popitem(last=False)[1])
        return found

    def _from_disk(self, kept: TextCache, caption: str) -> Embedded:
        device = _device(self._base.text_encoders[0])
        tensors = {name: tensor.to(device) for name, tensor in kept.embed(caption).items()}
        return Embedded(tensors["context"], tensors.get("pooled"))

    def _encode(self, captions: Sequence[str]) -> Embedded:
        """SD 1 and 2 read the last layer after its norm; SDXL the last but one of both encoders, side by side, and the
        second's projection of its end token."""
        two = len(self._base.text_encoders) == 2
        contexts: list[Tensor] = []
        pooled: Tensor | None = None
        for number, (encoder, tokenizer) in enumerate(
            zip(self._base.text_encoders, self._base.tokenizers, strict=True)
        ):
            placed = self._tokens.read(tokenizer, captions)
            with self._tokens.put_in(number, encoder, placed):
                out: Any = encoder(placed.ids.to(_device(encoder)), output_hidden_states=two)
            contexts.append(out.hidden_states[-2] if two else out.last_hidden_state)
            pooled = out.text_embeds if two and encoder is self._base.text_encoders[1] else None
        return Embedded(torch.cat(contexts, dim=-1), pooled)


def _apart(embedded: Embedded) -> Iterator[Embedded]:
    """The rows of a batch."""
    for row in range(len(embedded.context)):
        yield Embedded(embedded.context[row : row + 1], None if embedded.pooled is None else embedded.pooled[[row]])


def _named(embedded: Embedded) -> dict[str, Tensor]:
    pooled = {} if embedded.pooled is None else {"pooled": embedded.pooled}
    return {"context": embedded.context, **pooled}


def _device(module: torch.nn.Module) -> torch.device:
    return next(module.parameters()).device


def _nbytes(embedded: Embedded) -> int:
    tensors = [embedded.context, *([] if embedded.pooled is None else [embedded.pooled])]
    return sum(tensor.nbytes for tensor in tensors)
