"""The projections of an attention in one operation: q, k, v of self-attention, k, v of cross-attention.

Takes a UNet whose layers are wrapped; gives it stacked projection weights, stacked pools, and processors that
use them in forwards that add rank rows. A forward without adapters runs diffusers' own processors over views
of the same weights, and so keeps its bits. It knows no adapter and no request.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0
from torch import Tensor, nn

from loramux_kernels import FusedPool, lora_qkv
from loramux_server.engine.lora_layers import LoraLinear


class FusedProjections(nn.Module):
    """Layers that read one input. weight: [parts * N, K], of which each layer's weight is a view."""

    def __init__(self, layers: Sequence[LoraLinear]) -> None:
        super().__init__()
        self.group, self.block = layers[0].group, layers[0].block
        self.weight = nn.Parameter(torch.cat([layer.weight.data for layer in layers]), requires_grad=False)
        has_bias = cast("nn.Parameter | None", layers[0].bias) is not None
        self.bias = nn.Parameter(torch.cat([layer.bias.data for layer in layers]), False) if has_bias else None
        self._pool: FusedPool | None = None
        self._layers = tuple(layers)  # a tuple, so that they stay the attention's own submodules
        for layer, weight in zip(layers, self.weight.data.chunk(len(layers)), strict=True):
            layer.weight = nn.Parameter(weight, requires_grad=False)
            layer.make_pool = self._make_pools

    def forward(self, input: Tensor) -> Tensor:
        """input [rows, tokens, K] to [rows, tokens, parts * N]; only in a forward that adds rank rows."""
        tables = self.group.tables_of(self.block)
        assert self._pool is not None and tables is not None
        y = lora_qkv(input, self.weight, self.bias, self._pool, tables, impl=self.group.impl)
        for part, layer in zip(y.chunk(len(self._layers), dim=-1), self._layers, strict=True):
            layer.add_sides(part, input)
        return y

    def _make_pools(self, size: int) -> None:
        layer = self._layers[0]
        self._pool = FusedPool(
            len(self._layers), size, layer.k, layer.n, dtype=layer.weight.dtype, device=layer.weight.device
        )
        for layer, pool in zip(self._layers, self._pool.parts, strict=True):
            layer.pool = pool


class _Processor:
    """Diffusers' processor for fused projections where the batch adds rank rows, otherwise the plain one."""

    def __init__(self, plain: AttnProcessor2_0, key: LoraLinear) -> None:
        self._plain, self._fused, self._key = plain, FusedAttnProcessor2_0(), key

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (self._fused if adds(self._key) else self._plain)(attn, hidden_states, *args, **kwargs)


def adds(layer: LoraLinear) -> bool:
    """Whether a layer adds rank rows in this forward."""
    return layer.group.tables_of(layer.block) is not None and layer.pool is not None


def fuse_projections(unet: nn.Module) -> int:
    """Fuses every attention whose projections are alike; gives the number of them."""
    fused = 0
    for module in list(unet.modules()):
        if not isinstance(module, Attention) or not isinstance(module.processor, AttnProcessor2_0):
            continue
        attention: Any = module
        cross = attention.is_cross_attention
        layers = [attention.to_k, attention.to_v] if cross else [attention.to_q, attention.to_k, attention.to_v]
        if len({layer.weight.shape for layer in layers}) > 1:
            continue
        setattr(attention, "to_kv" if cross else "to_qkv", FusedProjections(layers))
        attention.set_processor(_Processor(module.processor, attention.to_k))
        fused += 1
    return fused
