"""Random layers with another blend in every batch row, and what they should give: float64 on the rounded inputs.

The pool holds NaN wherever no blend of the case looks, except in its zero row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from loramux_kernels import FusedPool, RankRowPool, TableBank, Tables

Blend = Sequence[int]
"""Ranks of the adapters of one batch row."""

POOL_ROWS = 1200
# 4 + 16 + 128 in one row, none, one adapter, and more than one step of every loop
MIXED: tuple[Blend, ...] = ((4, 16, 128), (), (4,), (16, 16, 33))
NARROW: tuple[Blend, ...] = ((4, 16, 33), (), (4,), (16, 16))

# Relative Frobenius error of rounding once; for fp32 of adding K terms one after another (see `floor`).
_UNIT = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 2**-24}


@dataclass(frozen=True)
class Linear:
    """A linear layer, or several that read one input. w0: [parts * N, K]; pools: [parts, P, K], [parts, P, N]."""

    x: torch.Tensor
    w0: torch.Tensor
    bias: torch.Tensor | None
    fused: FusedPool
    tables: Tables

    @property
    def pool(self) -> RankRowPool:
        return self.fused.parts[0]

    def with_entries(self, entries: Sequence[Sequence[tuple[int, float]]]) -> "Linear":
        """The same layer with other rank rows and scales."""
        return replace(self, tables=tables_of(entries, self.x.device, self.tables))

    def want(self) -> torch.Tensor:
        """float64 [rows, M, parts * N]."""
        parts = len(self.fused.parts)
        biases = [None] * parts if self.bias is None else self.bias.chunk(parts)
        weights = self.w0.chunk(parts)
        return torch.cat(
            [
                torch.stack([self._row(i, w, b, pool) for i in range(len(self.x))])
                for w, b, pool in zip(weights, biases, self.fused.parts, strict=True)
            ],
            dim=-1,
        )

    def _row(self, i: int, w0: torch.Tensor, bias: torch.Tensor | None, pool: RankRowPool) -> torch.Tensor:
        x, w = self.x[i].double(), w0.double()
        c, d = scales(pool, self.tables, i)
        y = (x * d) @ w.T + (c - 1) * (x @ w.T)
        for row, scale in self.tables.entries[i]:
            y += scale * torch.outer(x @ pool.a[row].double(), pool.b[row].double())
        return y if bias is None else y + bias.double()


def linear(
    dtype: torch.dtype,
    *,
    m: int,
    k: int,
    n: int,
    blends: Sequence[Blend] = MIXED,
    base: float = 1.0,
    parts: int = 1,
    bias: bool = True,
    device: str = "cpu",
) -> Linear:
    """Fresh signed data; the adapter term of a mixed row is about as large as the base term of `base` 1."""
    fused = FusedPool(parts, POOL_ROWS, k, n, dtype=dtype, device=torch.device(device))
    entries = random_entries(blends)
    for pool in fused.parts:
        fill(pool, k, entries)
    return Linear(
        x=torch.randn(len(blends), m, k, device=device).to(dtype),
        w0=(torch.randn(parts * n, k, device=device) * base / k**0.5).to(dtype),
        bias=(torch.randn(parts * n, device=device) * base).to(dtype) if bias else None,
        fused=fused,
        tables=tables_of(entries, torch.device(device)),
    )


@dataclass(frozen=True)
class Conv:
    """A convolution. where: stride, padding, dilation."""

    x: torch.Tensor
    w0: torch.Tensor
    bias: torch.Tensor | None
    pool: RankRowPool
    tables: Tables
    where: dict[str, tuple[int, int]]

    def want(self) -> torch.Tensor:
        """float64 [rows, N, H', W']: every rank row as a kernel of its own."""
        return torch.stack([self._row(i) for i in range(len(self.x))])

    def _row(self, i: int) -> torch.Tensor:
        n, cin, kh, kw = self.w0.shape
        x, weight = self.x[i : i + 1].double(), self.w0.double()
        c, d = scales(self.pool, self.tables, i)
        extra = torch.zeros_like(weight)
        for row, scale in self.tables.entries[i]:
            kernel = self.pool.a[row].double().view(kh, kw, cin).permute(2, 0, 1)
            extra += scale * self.pool.b[row].double()[:, None, None, None] * kernel
        total = weight * d.expand(cin)[None, :, None, None] + weight * (c.expand(n)[:, None, None, None] - 1) + extra
        bias = None if self.bias is None else self.bias.double()
        return F.conv2d(x, total, bias, **self.where)[0]


def conv(
    dtype: torch.dtype,
    *,
    cin: int,
    n: int,
    size: tuple[int, int],
    kernel: tuple[int, int] = (3, 3),
    blends: Sequence[Blend] = NARROW,
    base: float = 1.0,
    bias: bool = True,
    device: str = "cpu",
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
) -> Conv:
    """Fresh signed data; terms as in `linear`."""
    k = kernel[0] * kernel[1] * cin
    pool = RankRowPool.zeros(POOL_ROWS, k, n, dtype=dtype, device=torch.device(device))
    entries = random_entries(blends)
    fill(pool, k, entries)
    return Conv(
        x=torch.randn(len(blends), cin, *size, device=device).to(dtype),
        w0=(torch.randn(n, cin, *kernel, device=device) * base / k**0.5).to(dtype),
        bias=(torch.randn(n, device=device) * base).to(dtype) if bias else None,
        pool=pool,
        tables=tables_of(entries, torch.device(device)),
        where={"stride": stride, "padding": padding, "dilation": dilation},
    )


def random_entries(blends: Sequence[Blend]) -> list[list[tuple[int, float]]]:
    """Scattered rank rows, some shared between batch rows, and scales of both signs, one an adapter."""
    numbers = (torch.randperm(POOL_ROWS - 1) + 1).tolist()
    entries: list[list[tuple[int, float]]] = []
    for blend in blends:
        first = int(torch.randint(0, 8, ()))
        scales = [float(torch.randn(())) + (0.5 if i % 2 else -0.5) for i in range(len(blend))]
        flat = [scale for scale, rank in zip(scales, blend, strict=True) for _ in range(rank)]
        entries.append([(numbers[first + j], scale) for j, scale in enumerate(flat)])
    return entries


def fill(pool: RankRowPool, k: int, entries: Sequence[Sequence[tuple[int, float]]]) -> None:
    """NaN everywhere, zeros in row 0, random factors in the rows that `entries` name."""
    used = sorted({row for row_entries in entries for row, _ in row_entries})
    pool.a.fill_(float("nan"))
    pool.b.fill_(float("nan"))
    pool.a[0] = pool.b[0] = 0
    longest = max((len(row) for row in entries), default=1) or 1
    pool.a[used] = (torch.randn(len(used), k, device=pool.a.device) / k**0.5).to(pool.a)
    pool.b[used] = (torch.randn(len(used), pool.b.shape[1], device=pool.b.device) / longest**0.5).to(pool.b)


def tables_of(
    entries: Sequence[Sequence[tuple[int, float]]], device: torch.device, like: Tables | None = None
) -> Tables:
    """Fresh tables, at least as wide as `like`; with its scale tables."""
    tables = TableBank(device).write(entries or [[]])
    if tables is None:  # no rank rows at all: what a batch of another company would hand over
        tables = TableBank(device).write([[(0, 0.0)] for _ in entries])
        assert tables is not None
        tables = replace(tables, nrank=torch.zeros_like(tables.nrank), entries=tuple(() for _ in entries))
    return tables if like is None else replace(tables, outputs=like.outputs, inputs=like.inputs)


def scales(pool: RankRowPool, tables: Tables, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 output and input scales of a batch row: c = 1 + sum w (g - 1), d = 1 + sum w (h - 1)."""
    result = []
    for values, of in ((pool.g, tables.outputs), (pool.h, tables.inputs)):
        total = torch.ones(1, dtype=torch.float64, device=pool.a.device)
        if values is not None and of is not None:
            for i in range(of.counts[row]):
                total = total + of.scale[row, i].double() * values[of.idx[row, i]].double()
        result.append(total)
    return result[0], result[1]


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative Frobenius error."""
    return float((got.double() - want).norm() / want.norm())


def floor(want: torch.Tensor, dtype: torch.dtype, terms: int) -> float:
    """The error nobody can avoid who returns `dtype`.

    16 bits: that of rounding `want` once. fp32, where rounding the sum is nothing beside making it: that of adding
    `terms` random products one after another, u * sqrt(terms / 6) (every partial sum is rounded with error u / sqrt(3)
    of its size, which grows as the square root of the terms so far).
    """
    if dtype == torch.float32:
        return max(_UNIT[dtype] * (terms / 6) ** 0.5, 2 * _UNIT[dtype])
    return error(want.to(dtype), want)
