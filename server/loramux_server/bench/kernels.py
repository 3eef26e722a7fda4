"""A layer with rank rows against the same layer without, at the largest attention shape of the built-in base
and at one of Stable Diffusion 1.5."""

import torch
import torch.nn.functional as F

from loramux_kernels import RankRowPool, TableBank, lora_linear
from loramux_server.bench.harness import Row, ratio

_SHAPES = ((256, 48, 48), (1024, 640, 640))
_ROWS = 8


def measure() -> list[Row]:
    """One row a shape and total rank."""
    return [_one(m, k, n, rank) for m, k, n in _SHAPES for rank in (16, 64)]


def _one(m: int, k: int, n: int, rank: int) -> Row:
    x, w0 = torch.randn(_ROWS, m, k), torch.randn(n, k)
    a, b = torch.randn(_ROWS * rank + 1, k), torch.randn(_ROWS * rank + 1, n)
    a[0] = b[0] = 0
    pool = RankRowPool(a, b)
    entries = [[(1 + row * rank + r, 0.1) for r in range(rank)] for row in range(_ROWS)]
    tables = TableBank(torch.device("cpu")).write(entries)
    assert tables is not None
    delta = lora_linear(x, w0, None, pool, tables) - F.linear(x, w0)
    want = torch.stack([0.1 * x[i] @ a[[r for r, _ in e]].T @ b[[r for r, _ in e]] for i, e in enumerate(entries)])
    assert want.norm() > 0 and (delta - want).norm() / want.norm() < 1e-4, "the op computes something else"
    value = ratio(lambda: lora_linear(x, w0, None, pool, tables), lambda: F.linear(x, w0))
    return Row(f"linear {m}x{k}x{n}, 8 rows, total rank {rank} each, reference op / base layer", value, "x")
