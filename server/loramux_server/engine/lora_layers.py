"""The base's layers, each able to add rank rows to its product.

Takes a loaded model; gives the same model with every Linear and Conv2d replaced by one that shares its
weights, the layer groups they belong to and the layout they make up. It knows no adapter and no request:
rank rows are numbers here.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loramux_kernels import Impl, RankRowPool, RowAllocator, TableBank, Tables, lora_conv2d, lora_linear
from loramux_server.engine.blends import EVERYWHERE, RowEntries
from loramux_store.layout import ModuleSpec

_NOTHING: Mapping[str, Tables | None] = {EVERYWHERE: None}
_NOT_ADAPTED = frozenset({"unet.time_embedding.cond_proj"})
"""The guidance embedding of distilled UNets: no adapter names it, and without it they take those of their teacher."""


class LayerGroup:
    """Layers that share row numbers and tables.

    impl: how its layers compute. tables: what the next forward of these layers adds, by block of the UNet, with
    EVERYWHERE for the blocks that are not keys; None adds nothing and launches nothing.
    """

    def __init__(self, name: str, impl: Impl) -> None:
        self.name = name
        self.impl: Impl = impl
        self.layers: dict[str, LoraLinear | LoraConv2d] = {}
        self.tables: Mapping[str, Tables | None] = _NOTHING

    @property
    def row_bytes(self) -> int:
        """Device bytes of one rank row over all layers."""
        return sum((layer.k + layer.n) * layer.weight.element_size() for layer in self.layers.values())

    def open(self, size: int, device: torch.device, fixed_rank: int | None = None) -> None:
        """Makes room for `size` rank rows; their arrays are allocated by `write`, when first needed.

        fixed_rank: R class of all forwards, where results must not depend on the company in their last bits.
        """
        self.rows = RowAllocator(size)
        self._banks: defaultdict[str, TableBank] = defaultdict(lambda: TableBank(device, fixed_rank))

    def write(self, rows: Sequence[int], factors: Mapping[str, tuple[Tensor, Tensor, float]]) -> None:
        """Writes one adapter's factors {module path: (a [r, K], b [r, N], scale)} into `rows` of every layer."""
        for path, layer in self.layers.items():
            if layer.pool is None:
                layer.make_pool(self.rows.size)
            pool = cast("RankRowPool", layer.pool)
            if path in factors:
                pool.write(rows, *factors[path])
            else:
                pool.clear(rows)

    @contextmanager
    def adding(self, blends: Sequence[RowEntries]) -> Generator[Mapping[str, Tables]]:
        """Within it, batch row i of these layers adds the (rank row, scale) pairs blends[i], block by block.

        Blocks that no blend names share one set of tables.
        """
        blocks = {EVERYWHERE: None} | {block: None for blend in blends for block in blend}
        self.tables = {
            block: self._banks[block].write([blend.get(block, blend[EVERYWHERE]) for blend in blends])
            for block in blocks
        }
        try:
            yield {block: tables for block, tables in self.tables.items() if tables is not None}
        finally:
            self.tables = _NOTHING

    def tables_of(self, block: str) -> Tables | None:
        """What the layers of a block add now."""
        return self.tables[block] if block in self.tables else self.tables[EVERYWHERE]


class LoraLinear(nn.Linear):
    """A Linear of the base with its rank rows; its forward without tables is nn.Linear's own."""

    def __init__(self, base: nn.Linear, group: LayerGroup, block: str) -> None:
        super().__init__(
            base.in_features, base.out_features, bias=cast("nn.Parameter | None", base.bias) is not None, device="meta"
        )
        self.weight, self.bias = base.weight, base.bias
        self.group, self.block, self.pool = group, block, cast("RankRowPool | None", None)
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
            return F.linear(input, self.weight, self.bias)
        return lora_linear(input, self.weight, self.bias, self.pool, tables, impl=self.group.impl)


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
        self.k, self.n = self.weight[0].numel(), base.out_channels
        self.make_pool: Callable[[int], None] = lambda size: _make_pool(self, size)

    @property
    def spec(self) -> ModuleSpec:
        """What an adapter must fit."""
        return ModuleSpec("conv2d", tuple(self.weight.shape))

    def forward(self, input: Tensor) -> Tensor:
        """input [rows, Cin, H, W] to [rows, N, H', W']."""
        tables = self.group.tables_of(self.block)
        if tables is None or self.pool is None:
            return super().forward(input)
        return lora_conv2d(
            input,
            self.weight,
            self.bias,
            self.pool,
            tables,
            stride=cast("tuple[int, int]", self.stride),
            padding=cast("tuple[int, int]", self.padding),
            dilation=cast("tuple[int, int]", self.dilation),
            impl=self.group.impl,
        )


def group_of(path: str, layer: nn.Module) -> str:
    """Name of the layer group that a module path such as `unet.mid_block.attentions.0.proj_in` belongs to."""
    component, _, rest = path.partition(".")
    if component != "unet":
        return component
    if ".attn1." in rest or ".attn2." in rest:
        return "unet.attention"
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


def wrap(models: Mapping[str, nn.Module], impl: Impl = "reference") -> dict[str, LayerGroup]:
    """Replaces every Linear and Conv2d of {component: model} in place; gives the groups by name.

    Grouped and non-zero-padded convolutions have no rank-row form and stay as they are (Stable Diffusion
    has none).
    """
    groups: dict[str, LayerGroup] = {}
    for component, model in models.items():
        for name, layer in list(model.named_modules()):
            if not isinstance(layer, nn.Linear | nn.Conv2d) or not _adaptable(layer):
                continue
            path = canonical_path(component, name)
            if path in _NOT_ADAPTED:
                continue
            group = groups.setdefault(group_of(path, layer), LayerGroup(group_of(path, layer), impl))
            args = group, block_of(path)
            wrapped = LoraLinear(layer, *args) if isinstance(layer, nn.Linear) else LoraConv2d(layer, *args)
            model.set_submodule(name, wrapped)
            group.layers[path] = wrapped
    return groups


def _make_pool(layer: LoraLinear | LoraConv2d, size: int) -> None:
    weight = layer.weight
    layer.pool = RankRowPool.zeros(size, layer.k, layer.n, dtype=weight.dtype, device=weight.device)


def _adaptable(layer: nn.Linear | nn.Conv2d) -> bool:
    if isinstance(layer, nn.Linear):
        return True
    return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
