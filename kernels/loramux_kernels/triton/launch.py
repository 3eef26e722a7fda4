"""The rank-row operations by Triton: plans looked up, buffers made, kernels launched.

Takes what `ops` has checked and gives activations. Variants of a linear layer:

    split     shrink, then a GEMM whose K loop goes on over the rank rows
    single    both in one launch
    vendor    the vendor's GEMM, shrink, then expand in place

Which batch row has which rank rows is read by the kernels from the tables: nothing here looks at them, so
that a captured graph serves every blend of its R class. It knows no adapter and no request.
"""

from dataclasses import replace
from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from triton import knobs

from loramux_kernels import reference
from loramux_kernels.pool import FusedPool, RankRowPool
from loramux_kernels.tables import ScaleTables, Tables
from loramux_kernels.triton.column_scale import prescale
from loramux_kernels.triton.conv_expand import conv_expand
from loramux_kernels.triton.dispatch import Call, ExpandTile, GemmTile, Plan, ShrinkTile, plan_for
from loramux_kernels.triton.expand import expand
from loramux_kernels.triton.gemm_expand import gemm_expand
from loramux_kernels.triton.shrink import shrink
from loramux_kernels.triton.single_pass import single_pass

_TAP_BYTES = 256 << 20  # of a convolution's products with the taps; beyond it batch rows go one after another


def lora_linear(x: Tensor, w0: Tensor, bias: Tensor | None, pool: RankRowPool, tables: Tables) -> Tensor:
    """See `ops.lora_linear`."""
    return _planned(x, w0, bias, pool, tables)


def lora_qkv(x: Tensor, w0: Tensor, bias: Tensor | None, pool: FusedPool, tables: Tables) -> Tensor:
    """See `ops.lora_qkv`. Layers with scales of their own are launched one by one."""
    if any(part.g is not None or part.h is not None for part in pool.parts):
        return torch.cat([lora_linear(x, w, b, part, tables) for w, b, part in pool.by_part(w0, bias)], dim=-1)
    return _planned(x, w0, bias, pool, tables)


def _planned(x: Tensor, w0: Tensor, bias: Tensor | None, pool: RankRowPool | FusedPool, tables: Tables) -> Tensor:
    """x [rows, ..., K] to [rows, ..., N] by the plan that the table has for it."""
    x3 = x.reshape(x.shape[0], -1, x.shape[-1]).contiguous()
    single = pool if isinstance(pool, RankRowPool) else None
    plan = plan_for(_arch(x.device), _call(x3, w0.shape[0], tables, single))
    return linear(x3, w0, bias, pool, tables, plan).view(*x.shape[:-1], w0.shape[0])


def linear(
    x: Tensor, w0: Tensor, bias: Tensor | None, pool: RankRowPool | FusedPool, tables: Tables, plan: Plan
) -> Tensor:
    """y [rows, M, N] of x [rows, M, K] by `plan`; everything is allocated before the first launch."""
    rows, m = x.shape[:2]
    parts = len(pool.parts) if isinstance(pool, FusedPool) else 1
    g, h = (None, None) if isinstance(pool, FusedPool) else (pool.g, pool.h)
    if plan.shrink is None:
        y = x.new_empty(rows, m, w0.shape[0])
        single_pass(x, w0, bias, pool.a, pool.b, tables, y, cast("GemmTile", plan.tile))
        return y
    s = x.new_empty(rows, m, parts * tables.width)
    if plan.variant == "vendor":
        scaled = g is not None and tables.outputs is not None
        y = F.linear(x, w0, None if scaled else bias)
        _shrink_linear(x, pool, s, tables, plan.shrink, parts)
        expand(y, bias if scaled else None, s, pool.b, g, tables, cast("ExpandTile", plan.tile))
        return y
    y = x.new_empty(rows, m, w0.shape[0])
    prescaled = None
    if h is not None and tables.inputs is not None:
        prescaled = torch.empty_like(x)
        prescale(x, prescaled, h, tables.inputs)
    _shrink_linear(x, pool, s, tables, plan.shrink, parts)
    gemm_expand(x, prescaled, w0, bias, s, pool.b, g, tables, y, cast("GemmTile", plan.tile))
    return y


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
    """See `ops.lora_conv2d`; the result is channels last. A 1x1 convolution is a linear layer of its pixels."""
    pixels = x.permute(0, 2, 3, 1).contiguous()
    if w0.shape[2:] == (1, 1) and stride == (1, 1) and padding == (0, 0):
        return lora_linear(pixels, w0.view(w0.shape[0], -1), bias, pool, tables).permute(0, 3, 1, 2)
    where = (stride, padding, dilation)
    if pool.h is not None and tables.inputs is not None:  # rare: the whole base term by torch, rounded once
        wide = None if bias is None else bias.float()
        y = reference.base_conv2d(x.float(), w0.float(), wide, pool, tables, where).to(x.dtype)
        y, bias, g = y.permute(0, 2, 3, 1).contiguous(), None, None
    else:
        y, g = F.conv2d(pixels.permute(0, 3, 1, 2), w0, None, *where).permute(0, 2, 3, 1).contiguous(), pool.g
    call = Call("conv", x.element_size() * 8, y[..., 0].numel(), w0.shape[0], x.shape[1], tables.width)
    plan = plan_for(_arch(x.device), call)
    taps = w0.shape[2] * w0.shape[3]
    for part in _by_rows(tables, pixels[0].numel() // x.shape[1] * taps * tables.width * 4):
        _conv(pixels[part], y[part], bias, pool, g, _of_rows(tables, part), plan, tuple(w0.shape[2:]), where)
    return y.permute(0, 3, 1, 2)


def _conv(
    pixels: Tensor,
    y: Tensor,
    bias: Tensor | None,
    pool: RankRowPool,
    g: Tensor | None,
    tables: Tables,
    plan: Plan,
    kernel: tuple[int, ...],
    where: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
) -> None:
    """Adds the rank rows to y [rows, H', W', N], the base convolution of pixels [rows, H, W, Cin]."""
    rows, height, width, cin = pixels.shape
    taps = kernel[0] * kernel[1]
    z = pixels.new_empty(rows, height * width, taps * tables.width, dtype=torch.float32)
    shrink(
        pixels.flatten(1, 2),
        pool.a,
        z,
        tables,
        cast("ShrinkTile", plan.shrink),
        parts=taps,
        part_stride=cin,
        row_stride=taps * cin,
        scaled=False,
    )
    conv_expand(
        y,
        bias,
        z,
        pool.b,
        g,
        tables,
        cast("ExpandTile", plan.tile),
        size=(height, width),
        kernel=(kernel[0], kernel[1]),
        stride=where[0],
        padding=where[1],
        dilation=where[2],
    )


def _shrink_linear(
    x: Tensor, pool: RankRowPool | FusedPool, s: Tensor, tables: Tables, tile: ShrinkTile, parts: int
) -> None:
    part_stride = pool.a.stride(0) if parts > 1 else 0
    shrink(x, pool.a, s, tables, tile, parts=parts, part_stride=part_stride, row_stride=x.shape[2])


def _by_rows(tables: Tables, row_bytes: int) -> list[slice]:
    """Batch rows in portions whose tap products fit into _TAP_BYTES, one by one at the least."""
    step = max(1, _TAP_BYTES // row_bytes)
    return [slice(start, min(start + step, tables.rows)) for start in range(0, tables.rows, step)]


def _of_rows(tables: Tables, part: slice) -> Tables:
    """The tables of some batch rows, as views."""
    outputs = tables.outputs
    if outputs is not None:
        outputs = ScaleTables(outputs.idx[part], outputs.scale[part], outputs.count[part], outputs.counts[part])
    return replace(tables, idx=tables.idx[part], scale=tables.scale[part], nrank=tables.nrank[part], outputs=outputs)


def _call(x: Tensor, n: int, tables: Tables, pool: RankRowPool | None) -> Call:
    return Call(
        "linear",
        x.element_size() * 8,
        x.shape[0] * x.shape[1],
        n,
        x.shape[2],
        tables.width,
        scaled_outputs=pool is not None and pool.g is not None and tables.outputs is not None,
        scaled_inputs=pool is not None and pool.h is not None and tables.inputs is not None,
    )


@cache
def _arch(device: torch.device) -> str:
    """Key of the dispatch table."""
    if knobs.runtime.interpret:
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
