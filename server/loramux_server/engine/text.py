"""Prompts to embeddings, with the blend's text-encoder rows, cached.

Takes a text and what the blend adds in the text encoder; gives embeddings. It knows no request and no queue.
"""

from collections import OrderedDict
from collections.abc import Hashable

from torch import Tensor

from loramux_kernels import Entries
from loramux_server.engine.lora_layers import LayerGroup
from loramux_server.engine.pipeline import Base

CACHE_BYTES = 64 << 20


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

    def encode(self, text: str, entries: Entries, blend_key: Hashable) -> Tensor:
        """Embeddings [1, tokens, width] of `text`, cut at the tokenizer's length.

        entries: (rank row, scale) pairs in the text encoder; blend_key: what tells them apart for good (row
        numbers are reused): the digests and weights behind them.
        """
        key = (text, blend_key)
        if key not in self._cache:
            self._store(key, self._encode(text, entries))
        self._cache.move_to_end(key)
        return self._cache[key]

    def _encode(self, text: str, entries: Entries) -> Tensor:
        tokens = self._base.tokenizer(
            text,
            padding="max_length",
            max_length=self._base.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        with self._group.adding([entries]):
            return self._base.text_encoder(tokens.input_ids.to(self._base.device)).last_hidden_state

    def _store(self, key: Hashable, embeddings: Tensor) -> None:
        self._cache[key] = embeddings
        self._bytes += embeddings.nbytes
        while self._bytes > self._cache_bytes and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._bytes -= oldest.nbytes
