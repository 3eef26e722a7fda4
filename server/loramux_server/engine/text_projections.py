"""Keys and values of cross-attention, computed once for a text and its blend instead of in every step.

Takes a UNet whose layers are wrapped and, when a picture begins, its rows' texts and blends; gives keys and values, and
forwards that read them instead of computing them. It knows no request and no queue.

A text's keys and values are computed beside no other text, so that they never depend on company. Rows with the same
text and the same adapters in these layers share them, and they are freed with the last picture that has such a row.
There are none of a row whose blend changes these layers with progress, nor where they would not fit the budget. A
forward reads them where all its rows have them, otherwise it computes them.
"""

import hashlib
from collections.abc import Generator, Hashable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakValueDictionary, finalize

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from loramux_server.engine.blends import PlacedBlend
from loramux_server.engine.conditioning import side_by_side
from loramux_server.engine.fused_attention import FusedProjections, adds
from loramux_server.engine.layer_group import LayerGroup
from loramux_server.engine.lora_layers import LoraLinear, canonical_path
from loramux_server.metrics import Metrics

NAME = "cross_attention"
"""What metrics call the cache."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Projected:
    """Keys and values [1, tokens, N] of one text in all cross-attentions, one after another: k, v, k, v."""

    tensors: tuple[Tensor, ...]


class _Projection(nn.Module):
    """to_k, to_v or to_kv of a cross-attention: what the forward was given of these projections, or its own product."""

    def __init__(self, layer: nn.Module, owner: "TextProjections", numbers: tuple[int, ...]) -> None:
        super().__init__()
        self.layer, self._owner, self._numbers = layer, owner, numbers

    def forward(self, text: Tensor) -> Tensor:
        """text [rows, tokens, K] to [rows, tokens, N]."""
        rows = self._owner.reading
        if rows is None:
            return self.layer(text)
        return torch.cat([_joined(rows, number) for number in self._numbers], dim=-1)


@dataclass(frozen=True, slots=True)
class _Layers:
    """The projections of one cross-attention; paths: as adapters name them."""

    paths: tuple[str, str]
    key: LoraLinear
    value: LoraLinear
    both: FusedProjections | None

    def __call__(self, text: Tensor) -> tuple[Tensor, ...]:
        """Keys and values, in the operations that the forward would take."""
        if self.both is not None and adds(self.key):
            return self.both(text).chunk(2, dim=-1)
        return self.key(text), self.value(text)


class TextProjections:
    """The cross-attentions of a UNet, and the keys and values of the pictures in flight.

    budget: bytes of them. fixed_rows: rows of every forward where last bits matter; texts are then projected in that
    shape, and so have the bits that the forward itself would compute. reading: what the forward reads, row by row.
    """

    def __init__(
        self, unet: nn.Module, group: LayerGroup, budget: int, metrics: Metrics, fixed_rows: int | None = None
    ) -> None:
        self._group = group
        self._budget = budget
        self._fixed_rows = fixed_rows
        self._alive: WeakValueDictionary[Hashable, Projected] = WeakValueDictionary()
        self._hits, self._misses = (m.labels(NAME) for m in (metrics.text_cache_hits, metrics.text_cache_misses))
        self._gauge = metrics.text_cache_bytes.labels(NAME)
        self._layers = self._take_over(unet)
        self.nbytes = 0
        self.reading: Sequence[Projected] | None = None

    def of(self, text: Tensor, blends: Sequence[PlacedBlend]) -> tuple[Projected | None, ...]:
        """Keys and values of each row of a picture's text [rows, tokens, width]; None where there are none."""
        return tuple(self._of(row, blend) for row, blend in zip(text.split(1), blends, strict=True))

    @contextmanager
    def given(self, rows: Sequence[Projected | None], *, adapters: bool) -> Generator[None]:
        """Within it the forward over these rows reads their keys and values, if it can. adapters: whether it adds any.

        A forward without adapters keeps the bits of the base's own, whose shape its keys and values have to have: it
        computes them, unless they were computed in that shape.
        """
        known = [row for row in rows if row is not None]
        if len(known) == len(rows) and (adapters or self._fixed_rows):
            self.reading = known
        (self._misses if self.reading is None else self._hits).inc(len(rows))
        try:
            yield
        finally:
            self.reading = None

    def _of(self, text: Tensor, blend: PlacedBlend) -> Projected | None:
        added = self._added(blend)
        size = text.shape[1] * text.element_size() * sum(layers.key.n + layers.value.n for layers in self._layers)
        if added is None or size > self._budget:
            return None
        key = hashlib.sha256(text.cpu().view(torch.uint8).numpy().data).digest(), added
        found = self._alive.get(key)
        if found is not None:
            self._hits.inc()
            return found
        if self.nbytes + size > self._budget:
            return None
        self._misses.inc()
        try:
            made = self._projected(text, blend)
        except torch.OutOfMemoryError:
            return None
        self._count(size)
        finalize(made, self._count, -size).atexit = False
        self._alive[key] = made
        return made

    def _added(self, blend: PlacedBlend) -> Hashable | None:
        """What the blend does in these layers, for good: digests and scales. None where it changes with progress."""
        found: list[tuple[str, tuple[float, ...]]] = []
        for weighted, _ in blend.adapters:
            ranks = weighted.version.ranks
            blocks = {layers.key.block for layers in self._layers if any(path in ranks for path in layers.paths)}
            by_block = dict(weighted.parts.blocks)
            factor = weighted.weight * weighted.parts.unet
            scales = tuple(factor * by_block.get(block, 1.0) for block in sorted(blocks))
            if not any(scales):
                continue
            if weighted.schedule:
                return None
            found.append((weighted.version.digest, scales))
        return tuple(found)

    def _projected(self, text: Tensor, blend: PlacedBlend) -> Projected:
        rows = self._fixed_rows or 1
        entries = blend.at(0.0, (self._group.name,))[self._group.name]
        repeated = text.repeat(rows, 1, 1)
        with self._group.adding([entries] * rows):
            return Projected(tuple(each[:1].clone() for layers in self._layers for each in layers(repeated)))

    def _count(self, size: int) -> None:
        self.nbytes += size
        self._gauge.set(self.nbytes)

    def _take_over(self, unet: nn.Module) -> tuple[_Layers, ...]:
        """Puts projections that may be given in the place of the cross-attentions' own."""
        found: list[_Layers] = []
        for name, module in list(unet.named_modules()):
            if not isinstance(module, Attention) or not module.is_cross_attention or module.norm_cross:
                continue
            attention = cast("Any", module)
            first = 2 * len(found)
            paths = canonical_path("unet", f"{name}.to_k"), canonical_path("unet", f"{name}.to_v")
            found.append(_Layers(paths, attention.to_k, attention.to_v, getattr(attention, "to_kv", None)))
            attention.to_k = _Projection(attention.to_k, self, (first,))
            attention.to_v = _Projection(attention.to_v, self, (first + 1,))
            if found[-1].both is not None:
                attention.to_kv = _Projection(attention.to_kv, self, (first, first + 1))
        return tuple(found)


def _joined(rows: Sequence[Projected], number: int) -> Tensor:
    """One projection of all rows; shorter texts are filled up, as their embeddings are."""
    return side_by_side([row.tensors[number] for row in rows])[0]
