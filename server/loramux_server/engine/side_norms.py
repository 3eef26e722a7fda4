"""The base's normalisations, each able to add side operations to its result.

Takes a normalisation of the base; is one that shares its weights. It knows no adapter and no request.
"""

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from loramux_kernels import NormDelta, add_norm

if TYPE_CHECKING:
    from loramux_server.engine.layer_group import LayerGroup


class SideGroupNorm(nn.GroupNorm):
    """A GroupNorm of the base with its side operations; its forward without them is nn.GroupNorm's own."""

    def __init__(self, base: nn.GroupNorm, group: "LayerGroup", block: str) -> None:
        super().__init__(base.num_groups, base.num_channels, base.eps, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.group, self.block = group, block
        self.sides: dict[int, NormDelta] = {}

    def forward(self, input: Tensor) -> Tensor:
        """input [rows, channels, ...] to the same shape."""
        y, used = super().forward(input), self.group.uses_of(self.block)
        if not used or not self.sides:
            return y
        normalised = F.group_norm(input, self.num_groups, None, None, self.eps)
        return add_norm(y, normalised, self.sides, used, (1,) * (input.dim() - 2))


class SideLayerNorm(nn.LayerNorm):
    """A LayerNorm of the base with its side operations; its forward without them is nn.LayerNorm's own."""

    def __init__(self, base: nn.LayerNorm, group: "LayerGroup", block: str) -> None:
        super().__init__(list(base.normalized_shape), base.eps, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.group, self.block = group, block
        self.sides: dict[int, NormDelta] = {}

    def forward(self, input: Tensor) -> Tensor:
        """input [rows, ..., channels] to the same shape."""
        y, used = super().forward(input), self.group.uses_of(self.block)
        if not used or not self.sides:
            return y
        return add_norm(y, F.layer_norm(input, self.normalized_shape, None, None, self.eps), self.sides, used, ())
