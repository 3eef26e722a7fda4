"""The base's layers, each able to add rank rows and side operations to its product.

Takes a loaded model; gives the same model with every Linear, Conv2d and normalisation replaced by one that shares its
weights, the layer groups they belong to and the layout they make up. It knows no adapter and no request:
what is added are numbers here.
"""

import re
from collections.abc import Callable, Mapping
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from loramux_kernels import Impl, RankRowPool, SideOperation, add_conv2d, add_linear, lora_conv2d, lora_linear
from loramux_server.engine.blends import EVERYWHERE
from loramux_server.engine.layer_group import LayerGroup
from loramux_server.engine.rooms import ByteBudget
from loramux_server.engine.side_norms import SideGroupNorm, SideLayerNorm
from loramux_store.layout import ModuleSpec

_NOT_ADAPTED = frozenset({"unet.time_embedding.cond_proj"})
"""The guidance embedding of distilled UNets: no adapter names it, and without it they take those of their teacher."""


class LoraLinear(nn.Linear):
    """A Linear of the base with its rank rows; its forward without tables is nn.Linear's own."""

    def __init__(self, base: nn.Linear, group: LayerGroup, block: str) -> None:
        super().__init__(
            base.in_features, base.out_features, bias=cast("nn.Parameter | None", base.bias) is not None, device="meta"
        )
        self.weight, self.bias = base.weight, base.bias
        self.group, self.block, self.pool = group, block, cast("RankRowPool | None", None)
        self.sides: dict[int, SideOperation] = {}
        self.k, self.n = base.in_features, base.out_features
        self.make_pool: Callable[[int], None] = lambda size: _make_pool(self, size)

    @property
    def spec(self) -> ModuleSpec:
        """What an adapter must fit."""
        return ModuleSpec("linear", tuple(self.weight.shape))

    def forward(self, input: Tensor) -> Tensor:
        """input [rows, ..., K] to [rows, ..., N]."""
        tables = self.group.tables_of(self.block)
        if tables is None or self.pool is None:
            y = F.linear(input, self.weight, self.bias)
        else:
            y = lora_linear(input, self.weight, self.bias, self.pool, tables, impl=self.group.impl)
        return self.add_sides(y, input)

    def add_sides(self, y: Tensor, input: Tensor) -> Tensor:
        """y with the side operations that the forward uses here."""
        used = self.group.uses_of(self.block)
        return add_linear(y, input, self.sides, used) if used and self.sides else y


class LoraConv2d(nn.Conv2d):
    """A Conv2d of the base with its rank rows; its forward without tables is nn.Conv2d's own."""

    def __init__(self, base: nn.Conv2d, group: LayerGroup, block: str) -> None:
        super().__init__(
            base.in_channels,
            base.out_channels,
            cast("tuple[int, int]", base.kernel_size),
            cast("tuple[int, int]", base.stride),
            cast("tuple[int, int]", base.padding),
            cast("tuple[int, int]", base.dilation),
            bias=base.bias is not None,
            device="meta",
        )
        self.weight, self.bias = base.weight, base.bias
        self.group, self.block, self.pool = group, block, cast("RankRowPool | None", None)
        self.sides: dict[int, SideOperation] = {}
        self.k, self.n = self.weight[0].numel(), base.out_channels
        self.make_pool: Callable[[int], None] = lambda size: _make_pool(self, size)

    @property
    def spec(self) -> ModuleSpec:
        """What an adapter must fit."""
        return ModuleSpec("conv2d", tuple(self.weight.shape))

    def forward(self, input: Tensor) -> Tensor:
        """input [rows, Cin, H, W] to [rows, N, H', W']."""
        tables = self.group.tables_of(self.block)
        where = (self.stride, self.padding, self.dilation)
        where = cast("tuple[tuple[int, int], tuple[int, int], tuple[int, int]]", where)
        if tables is None or self.pool is None:
            y = super().forward(input)
        else:
            stride, padding, dilation = where
            y = lora_conv2d(
                input,
                self.weight,
                self.bias,
                self.pool,
                tables,
                stride=stride,
                padding=padding,
                dilation=dilation,
                impl=self.group.impl,
            )
        used = self.group.uses_of(self.block)
        return add_conv2d(y, input, self.sides, used, where) if used and self.sides else y


def group_of(path: str, layer: nn.Module) -> str:
    """Name of the layer group that a module path such as `unet.mid_block.attentions.0.proj_in` belongs to."""
    component, _, rest = path.partition(".")
    if component != "unet":
        return component
    if ".attn1." in rest or ".attn2." in rest:
        return "unet.attention"
    if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
        return "unet.rest"
    if ".ff." in rest or rest.endswith((".proj_in", ".proj_out")):
        return "unet.feed_forward"
    return "unet.convolution" if isinstance(layer, nn.Conv2d) else "unet.rest"


def block_of(path: str) -> str:
    """Block of the UNet that a module path belongs to, `down.1`, `mid` or `up.0`; EVERYWHERE outside of them."""
    found = re.match(r"unet\.(?:(down|up)_blocks\.(\d+)|(mid)_block)\.", path)
    if not found:
        return EVERYWHERE
    side, index, middle = found.groups()
    return middle or f"{side}.{index}"


def canonical_path(component: str, name: str) -> str:
    """The path that adapter files and layouts use: transformers 5 builds CLIP without its `text_model` level."""
    bare = component.startswith("text_encoder") and not name.startswith(("text_model.", "text_projection"))
    return f"{component}.text_model.{name}" if bare else f"{component}.{name}"


def wrap(models: Mapping[str, nn.Module], impl: Impl = "reference", side_bytes: int = 0) -> dict[str, LayerGroup]:
    """Replaces every Linear, Conv2d and normalisation of {component: model} in place; gives the groups by name.

    side_bytes: for the side operations of all. Grouped and non-zero-padded convolutions have no rank-row form and stay
    as they are (Stable Diffusion has none).
    """
    groups: dict[str, LayerGroup] = {}
    budget = ByteBudget(side_bytes)
    for component, model in models.items():
        for name, layer in list(model.named_modules()):
            path = canonical_path(component, name)
            if not _adaptable(layer) or path in _NOT_ADAPTED:
                continue
            group_name = group_of(path, layer)
            group = groups.setdefault(group_name, LayerGroup(group_name, impl, budget))
            _replace(model, name, path, layer, group)
    return {name: group for name, group in groups.items() if group.layers}


def _replace(model: nn.Module, name: str, path: str, layer: nn.Module, group: LayerGroup) -> None:
    args = group, block_of(path)
    match layer:
        case nn.Linear():
            wrapped = group.layers[path] = LoraLinear(layer, *args)
        case nn.Conv2d():
            wrapped = group.layers[path] = LoraConv2d(layer, *args)
        case nn.GroupNorm():
            wrapped = group.norms[path] = SideGroupNorm(layer, *args)
        case _:
            wrapped = group.norms[path] = SideLayerNorm(cast("nn.LayerNorm", layer), *args)
    model.set_submodule(name, wrapped)


def _make_pool(layer: LoraLinear | LoraConv2d, size: int) -> None:
    weight = layer.weight
    layer.pool = RankRowPool.zeros(size, layer.k, layer.n, dtype=weight.dtype, device=weight.device)


def _adaptable(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
        return cast("nn.Parameter | None", layer.weight) is not None
    return isinstance(layer, nn.Linear)
