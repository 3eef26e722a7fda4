"""One linear layer with a blend in its rank rows, and every way to compute it.

Takes a shape; gives tensors and callables without arguments. It knows no clock and no device of its own: PEFT's
module and the Triton variants are built where they are asked for.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from loramux_kernels import FusedPool, RankRowPool, RowAllocator, TableBank, Tables, lora_linear, lora_qkv
from loramux_server.bench.shapes import LayerShape

POOL_ROWS = 128
_WEIGHTS = (0.7, -0.9, 0.5)  # of the adapters of a blend
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # of the rounded sum less the base

Compute = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Adapter:
    """Rank rows a [r, K] and b [r, N] that one adapter owns, the same in every part, and its weight in the blend."""

    rows: tuple[int, ...]
    weight: float


@dataclass(frozen=True, slots=True)
class Blend:
    """The adapters of every batch row, and their tables."""

    adapters: tuple[Adapter, ...]
    tables: Tables

    @property
    def rank(self) -> int:
        """Total rank."""
        return sum(len(adapter.rows) for adapter in self.adapters)


@dataclass(frozen=True, slots=True)
class Layer:
    """x [rows, tokens, K], w0 [parts * N, K] without bias, and the pool of its rank rows."""

    x: Tensor
    w0: Tensor
    pool: RankRowPool | FusedPool

    def base(self) -> Tensor:
        """The layer alone."""
        return F.linear(self.x, self.w0)


def make_layer(shape: LayerShape, rows: int, dtype: torch.dtype, device: torch.device) -> Layer:
    """A layer whose rank rows, where they are used, change its output about as much as its weight makes it."""
    x = torch.randn(rows, shape.tokens, shape.k, dtype=dtype, device=device)
    w0 = torch.randn(shape.outputs, shape.k, dtype=dtype, device=device) / math.sqrt(shape.k)
    if shape.stacked:
        pool = FusedPool(shape.parts, POOL_ROWS, shape.k, shape.n, dtype=dtype, device=device)
    else:
        pool = RankRowPool.zeros(POOL_ROWS, shape.k, shape.n, dtype=dtype, device=device)
    pool.a[..., 1:, :] = torch.randn_like(pool.a[..., 1:, :]) / math.sqrt(shape.k)
    pool.b[..., 1:, :] = torch.randn_like(pool.b[..., 1:, :]) / 4
    return Layer(x, w0, pool)


def make_blends(rows: int, ranks: Sequence[Sequence[int]], device: torch.device) -> list[Blend]:
    """One blend for each list of adapter ranks, the same in every batch row; the rows of its adapters do not adjoin,
    as after others between them were loaded."""
    blends: list[Blend] = []
    for blend in ranks:
        allocator = RowAllocator(POOL_ROWS)
        adapters: list[Adapter] = []
        for rank, weight in zip(blend, _WEIGHTS, strict=False):
            adapters.append(Adapter(allocator.take(rank), weight))
            allocator.take(16)
        entries = [(row, adapter.weight) for adapter in adapters for row in adapter.rows]
        tables = TableBank(device).write([entries] * rows)
        assert tables is not None
        blends.append(Blend(tuple(adapters), tables))
    return blends


def reference(layer: Layer, blend: Blend) -> Compute:
    """The op in plain torch."""
    if isinstance(layer.pool, FusedPool):
        pool = layer.pool
        return lambda: lora_qkv(layer.x, layer.w0, None, pool, blend.tables, impl="reference")
    single = layer.pool
    return lambda: lora_linear(layer.x, layer.w0, None, single, blend.tables, impl="reference")


def unfused(layer: Layer, blend: Blend) -> Compute:
    """Base, shrink, scale, expand and add as passes of their own over all batch rows, padded to the R class.

    The factors are gathered beforehand: serving kernels read them through an index.
    """
    assert isinstance(layer.pool, RankRowPool)
    index, scale = blend.tables.idx.long(), blend.tables.scale[:, None, :].to(layer.x.dtype)
    a, b = layer.pool.a[index].mT, layer.pool.b[index]

    def compute() -> Tensor:
        y = F.linear(layer.x, layer.w0)
        return y + torch.bmm(torch.bmm(layer.x, a) * scale, b)

    return compute


def check(layer: Layer, blend: Blend, sides: dict[str, Compute]) -> None:
    """That all sides compute the layer with the blend, and that the blend does something.

    Raises:
        AssertionError: otherwise; names the side.
    """
    base = layer.base().float()
    want = delta(layer, blend)
    assert 0.1 < want.norm() / base.norm() < 100, "the rank rows do nothing"
    for name, compute in sides.items():
        off = (compute().float() - base - want).norm() / want.norm()
        assert off < _TOLERANCE[layer.x.dtype], f"{name} computes something else: {off:.1e} off"


def delta(layer: Layer, blend: Blend) -> Tensor:
    """What a blend adds, fp32, adapter by adapter."""
    x, parts = layer.x.float(), layer.pool.parts if isinstance(layer.pool, FusedPool) else (layer.pool,)
    sums: list[Tensor] = []
    for part in parts:
        terms = [(part.a[list(one.rows)].float(), part.b[list(one.rows)].float(), one) for one in blend.adapters]
        sums.append(sum((one.weight * (x @ a.T @ b) for a, b, one in terms), torch.zeros(())))
    return torch.cat(sums, dim=-1)


def emptied(blend: Blend) -> Blend:
    """The same tables with no rank row in use."""
    return replace(blend, tables=replace(blend.tables, nrank=torch.zeros_like(blend.tables.nrank)))
