"""Linear layers with a blend in their rank rows against the layers alone, at the shapes of two UNets.

Takes the models and what may be spent; gives rows: layer by layer, and summed over a model's layers by how often
a forward meets them. On the CPU a batch of 2 rows (a guided picture: both rows have the same blend) in fp32; on a
card 2 and 16 rows in fp16, q, k, v launched one by one and together, by the clock of `card`. It knows no request.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch

from loramux_server.bench import card, shapes
from loramux_server.bench.harness import Row, medians
from loramux_server.bench.layer import Blend, Compute, Layer, check, make_blends, make_layer, reference, unfused
from loramux_server.bench.peft_layer import peft_module
from loramux_server.bench.shapes import LayerShape

_log = logging.getLogger(__name__)

RANKS = ((16,), (16, 16, 16))
"""Adapters of the blends that are measured: total rank 16 and 48."""

_BOUNDS = {16: "<=1.10", 48: "<=1.25"}  # of all Stable Diffusion 1.5 linears with a blend, on two CPU threads
_BASE, _REFERENCE, _UNFUSED, _PEFT = "base", "reference", "unfused", "PEFT"
_SECONDS = 2.0  # of timed calls a shape on a CPU, beyond the rounds that are promised

Size = tuple[int, int, int, int]
Times = Mapping[Size, Mapping[str, float]]
"""Seconds of every side of every launch. A side is `base`, or what computes the layer and the blend's rank."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all rows of a run share: batch rows, device, value type, rounds and time spent at least."""

    rows: int
    device: torch.device
    dtype: torch.dtype
    rounds: int = 5
    seconds: float = _SECONDS

    def __str__(self) -> str:
        if self.device.type == "cuda":
            return f"batch {self.rows}, {str(self.dtype)[6:]}"
        return f"batch {self.rows}, {str(self.dtype)[6:]}, CPU with {torch.get_num_threads()} threads"


def measure(
    models: Sequence[str] = (shapes.SD15, shapes.SDXL), rounds: int = 5, seconds: float = _SECONDS
) -> list[Row]:
    """Everything that the device here can compute."""
    if torch.cuda.is_available():
        device = torch.device("cuda")
        settings = [Setting(rows, device, torch.float16, rounds, 0) for rows in (2, 16)]
    else:
        settings = [Setting(2, torch.device("cpu"), torch.float32, rounds, seconds)]
    return [row for setting in settings for row in measure_at(setting, [shapes.of_model(model) for model in models])]


def measure_at(setting: Setting, models: Sequence[Sequence[LayerShape]]) -> list[Row]:
    """Rows of one setting: of whole models first, then layer by layer."""
    on_card = setting.device.type == "cuda"
    launches = {shape.size: shape for layers in models for shape in layers}
    if on_card:
        launches |= {shape.size: shape for layers in models for shape in shapes.stacked(layers)}
    times = {size: time_launch(shape, setting) for size, shape in launches.items()}
    rows: list[Row] = []
    for layers in models:
        rows += _model_rows(layers, times, setting)
        if on_card:
            rows += _stacked_rows(layers, times, setting)
    for layers in models:
        for shape in layers:
            rows += _launch_rows(shape, times[shape.size], setting)
    if not find_spec("peft"):
        _log.warning("PEFT is not installed: its rows are absent")
    return rows


@torch.inference_mode()
def time_launch(shape: LayerShape, setting: Setting) -> dict[str, float]:
    """Median seconds of every side, the blends of RANKS one after another in every round; checked beforehand."""
    if setting.device.type == "cuda":
        build = partial(_sides_of, shape, setting)
        return card.time_sides(build, card.copies(shape, setting.rows, setting.device), setting.rounds)
    return medians(_sides_of(shape, setting), setting.rounds, seconds=setting.seconds, warm=True)


def _sides_of(shape: LayerShape, setting: Setting, checked: bool = True) -> dict[str, Compute]:
    """A fresh layer and every way to compute it."""
    layer = make_layer(shape, setting.rows, setting.dtype, setting.device)
    sides: dict[str, Compute] = {_BASE: layer.base}
    for blend in make_blends(setting.rows, RANKS, setting.device):
        of_blend = _sides_of_blend(layer, blend, shape)
        if setting.device.type == "cuda":
            of_blend |= card.sides(layer, blend, shape)
        if checked:
            check(layer, blend, of_blend)
        sides |= {f"{name} R{blend.rank}": compute for name, compute in of_blend.items()}
    return sides


def _sides_of_blend(layer: Layer, blend: Blend, shape: LayerShape) -> dict[str, Compute]:
    sides = {_REFERENCE: reference(layer, blend)}
    if not shape.stacked:
        sides[_UNFUSED] = unfused(layer, blend)
        if find_spec("peft"):
            sides[_PEFT] = peft_module(layer, blend)
    return sides


def total(layers: Sequence[LayerShape], times: Times, side: str) -> float:
    """Seconds of one side for all layers of a forward."""
    return sum(shape.count * times[shape.size][side] for shape in layers)


def _model_rows(layers: Sequence[LayerShape], times: Times, setting: Setting) -> list[Row]:
    """Sums over a model's layers over the same sum of base alone, and of ours over PEFT's."""
    what = f"{layers[0].model}, all {sum(shape.count for shape in layers)} transformer linears, {setting}"
    base = total(layers, times, _BASE)
    rows = [Row(f"{what}: base", base * 1e3, "ms")]
    for rank in map(sum, RANKS):
        ours = "dispatch" if setting.device.type == "cuda" else _REFERENCE
        for name in _names(layers, times, rank):
            bounded = name == _REFERENCE == ours and layers[0].model == shapes.SD15
            value = total(layers, times, f"{name} R{rank}") / base
            rows.append(Row(f"{what}, R{rank}: {name} / base", value, "x", _BOUNDS[rank] if bounded else ""))
        if _PEFT in _names(layers, times, rank):
            value = total(layers, times, f"{ours} R{rank}") / total(layers, times, f"{_PEFT} R{rank}")
            rows.append(Row(f"{what}, R{rank}: {ours} / PEFT", value, "x", "<=1"))
    return rows


def _names(layers: Sequence[LayerShape], times: Times, rank: int) -> list[str]:
    """What computed every layer with a blend of `rank`."""
    suffix = f" R{rank}"
    common = set.intersection(*({*times[shape.size]} for shape in layers))
    return [name.removesuffix(suffix) for name in times[layers[0].size] if name in common and name.endswith(suffix)]


def _stacked_rows(layers: Sequence[LayerShape], times: Times, setting: Setting) -> list[Row]:
    """q, k, v in one launch: over base alone launched so, and over base alone launched one by one."""
    together = shapes.stacked(layers)
    what = f"{layers[0].model}, q, k, v together, {setting}"
    base, apart = total(together, times, _BASE), total(layers, times, _BASE)
    rows = [Row(f"{what}: base / base one by one", base / apart, "x")]
    for rank in map(sum, RANKS):
        for name in _names(together, times, rank):
            taken = total(together, times, f"{name} R{rank}")
            rows.append(Row(f"{what}, R{rank}: {name} / base together", taken / base, "x"))
            rows.append(Row(f"{what}, R{rank}: {name} / base one by one", taken / apart, "x"))
    return rows


def _launch_rows(shape: LayerShape, times: Mapping[str, float], setting: Setting) -> list[Row]:
    what = f"{shape.model} {shape.name} x{shape.count}, {shape.tokens}x{shape.k}x{shape.n}, {setting}"
    base = times[_BASE]
    rows = [Row(f"{what}: base", base * 1e6, "us")]
    for side, taken in times.items():
        if side != _BASE:
            name, rank = side.rsplit(" ", 1)
            rows.append(Row(f"{what}, {rank}: {name} / base", taken / base, "x"))
    return rows
