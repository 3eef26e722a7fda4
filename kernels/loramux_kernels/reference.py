"""The rank-row operations in plain torch: the CPU path, the oracle and the documentation.

Takes what `ops` has checked and gives activations. It knows no device and no dispatch. The
factors of a blend lie side by side, so that there is no loop over adapters; they are gathered when the
composition of the batch changes, not in every call (`RankRowPool.gathered`).
"""

from collections.abc import Callable
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

from loramux_kernels.pool import FusedPool, RankRowPool
from loramux_kernels.tables import ScaleTables, Tables


def lora_linear(x: Tensor, w0: Tensor, bias: Tensor | None, pool: RankRowPool, tables: Tables) -> Tensor:
    """y[i] = c[i] (W0 x[i]) + bias + B_pool[idx[i]]^T (scale[i] * (A_pool[idx[i]] x[i])).

    The adapter term is added in place to the fresh base product, so that a row without rank rows keeps the
    base product's bits.
    """
    y = _base_linear(x, w0, bias, pool, tables)
    a, b = pool.gathered(tables.composition)  # [lists, r, K], [lists, r, N]
    lists, r = a.shape[:2]
    s = torch.bmm(x.reshape(lists, -1, x.shape[-1]), a.mT)
    s.view(tables.rows, -1, r).mul_(tables.scale[:, None, :r])
    y.view(lists, -1, y.shape[-1]).baddbmm_(s, b)
    return y


def lora_qkv(x: Tensor, w0: Tensor, bias: Tensor | None, pool: FusedPool, tables: Tables) -> Tensor:
    """The products of layers that read one input, side by side in the last dimension."""
    return torch.cat([lora_linear(x, w, b, part, tables) for w, b, part in pool.by_part(w0, bias)], dim=-1)


def lora_conv2d(
    x: Tensor,
    w0: Tensor,
    bias: Tensor | None,
    pool: RankRowPool,
    tables: Tables,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """The same for a convolution: A, laid out [kh][kw][Cin], is a kxk convolution to the rank, B is 1x1."""
    where = (stride, padding, dilation)
    y = base_conv2d(x, w0, bias, pool, tables, where)
    a, b = pool.gathered(tables.composition)
    lists, r = a.shape[:2]
    a = a.view(lists * r, *w0.shape[2:], w0.shape[1]).permute(0, 3, 1, 2)
    if lists == 1:
        s = F.conv2d(x, a, None, *where)
    else:  # a group a batch row
        a = a.unflatten(0, (lists, r)).repeat_interleave(tables.rows // lists, 0).flatten(0, 1)
        s = F.conv2d(x.reshape(1, -1, *x.shape[2:]), a, None, *where, groups=tables.rows)
        s = s.view(tables.rows, r, *s.shape[2:])
    s.mul_(tables.scale[:, :r, None, None])
    b = b.mT.repeat_interleave(tables.rows // lists, 0)
    return y.add_(torch.bmm(b, s.flatten(2)).view(y.shape))


def blended_scale(scale_pool: Tensor | None, tables: ScaleTables | None) -> Tensor | None:
    """1 + sum_i weight_i (scale_i - 1), fp32 [rows, width]; None where nothing scales."""
    if scale_pool is None or tables is None:
        return None
    return 1 + torch.einsum("rg,rgw->rw", tables.scale, scale_pool[tables.idx])


def _base_linear(x: Tensor, w0: Tensor, bias: Tensor | None, pool: RankRowPool, tables: Tables) -> Tensor:
    """W0 x + bias; weight-decomposed, W0 (d x) + (c - 1) (W0 x) + bias."""
    between = (1,) * (x.dim() - 2)
    c = _spread(blended_scale(pool.g, tables.outputs), between, ())
    d = _spread(blended_scale(pool.h, tables.inputs), between, ())
    added = None if bias is None else _spread(bias[None], between, ())
    return _rescaled(x, c, d, tables, added, lambda part, with_bias: F.linear(part, w0, bias if with_bias else None))


def base_conv2d(
    x: Tensor,
    w0: Tensor,
    bias: Tensor | None,
    pool: RankRowPool,
    tables: Tables,
    where: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
) -> Tensor:
    """The base convolution with its output and input scales; where: stride, padding, dilation."""
    c = _spread(blended_scale(pool.g, tables.outputs), (), (1, 1))
    d = _spread(blended_scale(pool.h, tables.inputs), (), (1, 1))
    added = None if bias is None else _spread(bias[None], (), (1, 1))
    return _rescaled(
        x, c, d, tables, added, lambda part, with_bias: F.conv2d(part, w0, bias if with_bias else None, *where)
    )


def _rescaled(
    x: Tensor,
    c: Tensor | None,
    d: Tensor | None,
    tables: Tables,
    bias: Tensor | None,
    product: Callable[[Tensor, bool], Tensor],
) -> Tensor:
    """c W0 x, or W0 (d x), or in rows with both W0 (d x) + (c - 1) W0 x: only those take a second product; + bias.

    The bias is part of the product, and taken out of the scaling again, so that batch rows that nothing scales keep the
    bits that they have without such company.
    """
    y = product(x if d is None else (x * d).to(x.dtype), True)
    if c is None:
        return y
    scaled = (y * c if bias is None else y * c + (1 - c) * bias).to(x.dtype)
    both = _rows_with_both(tables)
    if d is not None and both:
        scaled[both] = (y[both] + (c[both] - 1) * product(x[both], False)).to(x.dtype)
    return scaled


def _rows_with_both(tables: Tables) -> list[int]:
    if tables.outputs is None or tables.inputs is None:
        return []
    pairs = zip(tables.outputs.counts, tables.inputs.counts, strict=True)
    return [row for row, (outputs, inputs) in enumerate(pairs) if outputs and inputs]


@overload
def _spread(scale: Tensor, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor: ...
@overload
def _spread(scale: Tensor | None, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor | None: ...
def _spread(scale: Tensor | None, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor | None:
    """[rows, width] as [rows, *before, width, *after]."""
    return None if scale is None else scale.view(len(scale), *before, scale.shape[1], *after)
