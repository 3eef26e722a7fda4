"""A UNet of Stable Diffusion 1.5's shapes with one adapter in its attention: against the same UNet as loaded, and
against PEFT's.

Takes a shape; gives rows. The weights are random and shared by all sides, so that memory holds them once.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from loramux_server.bench.harness import Row, medians, processor
from loramux_server.bench.shapes import SD15, TEXT_TOKENS
from loramux_server.engine.blends import EVERYWHERE, Added
from loramux_server.engine.layer_group import LayerGroup
from loramux_server.engine.lora_layers import LoraLinear, wrap
from loramux_server.engine.module_factors import ModuleFactors

RANK = 16
_WEIGHT = 0.7
_REPEATS = 7
_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
_GROUP = "unet.attention"
_ROWS = 2  # a guided picture
_TOLERANCE = 1e-4  # of what the adapter changes, fp32

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""Layer name in the UNet to (a [r, K], b [N, r])."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is measured. side: of the latents; config: of diffusers' UNet, beside its defaults."""

    name: str
    side: int
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])


SHAPE = Shape(SD15.replace("512x512", "256x256"), 32, {"cross_attention_dim": 768, "attention_head_dim": 8})


def measure() -> list[Row]:
    """Forwards of one guided picture."""
    return measure_at(SHAPE, _REPEATS)


@torch.inference_mode()
def measure_at(shape: Shape, repeats: int) -> list[Row]:
    """The sides are checked to compute the same, then timed in turn."""
    torch.manual_seed(0)
    plain = UNet2DConditionModel(**shape.config).eval()
    latents = torch.randn(_ROWS, 4, shape.side, shape.side)
    text = torch.randn(_ROWS, TEXT_TOKENS, plain.config["cross_attention_dim"])
    factors = _factors(plain)

    def forward(unet: UNet2DConditionModel) -> Tensor:
        return unet(latents, 500, text).sample

    ours = _Ours(_sharing(plain, shape), factors)
    sides: dict[str, Callable[[], Tensor]] = {"plain": lambda: forward(plain), "ours": lambda: ours.run(forward)}
    if find_spec("peft"):
        theirs = _with_peft(_sharing(plain, shape), factors)
        sides["PEFT"] = lambda: forward(theirs)
    _check({name: side() for name, side in sides.items()})
    taken = medians(sides, repeats, processor, warm=True)
    what = f"forward of {shape.name}, one guided picture, rank {RANK} in its attention, processor time"
    rows = [Row(f"{what}: ours / no adapter", taken["ours"] / taken["plain"], "x", "<=1.10")]
    if "PEFT" in taken:
        rows.append(Row(f"{what}: ours / PEFT", taken["ours"] / taken["PEFT"], "x", "<=1"))
        rows.append(Row(f"{what}: PEFT / no adapter", taken["PEFT"] / taken["plain"], "x"))
    return rows


def _factors(unet: UNet2DConditionModel) -> Factors:
    """Random ones that change what a layer gives by a good part of it."""
    return {
        name: (
            torch.randn(RANK, layer.in_features) / math.sqrt(layer.in_features),
            torch.randn(layer.out_features, RANK) / math.sqrt(RANK),
        )
        for name, layer in unet.named_modules()
        if name.endswith(tuple(f".{target}" for target in _TARGETS)) and isinstance(layer, torch.nn.Linear)
    }


def _sharing(unet: UNet2DConditionModel, shape: Shape) -> UNet2DConditionModel:
    """Another UNet over the same weights."""
    with torch.device("meta"):
        other = UNet2DConditionModel(**shape.config)
    other.load_state_dict(unet.state_dict(), assign=True)
    return other.eval()


class _Ours:
    """The UNet wrapped, with the adapter resident."""

    def __init__(self, unet: UNet2DConditionModel, factors: Factors) -> None:
        self._unet = unet
        groups = wrap({"unet": unet})
        for group in groups.values():
            group.open(RANK + 1, torch.device("cpu"))
        self._group: LayerGroup = groups[_GROUP]
        rows = self._group.rows.take(RANK)
        assert {f"unet.{name}" for name in factors} == self._group.layers.keys()
        assert all(isinstance(layer, LoraLinear) for layer in self._group.layers.values())
        self._group.write(
            {_GROUP: rows},
            {f"unet.{name}": ModuleFactors({"a": a, "b": b.mT}, 1.0) for name, (a, b) in factors.items()},
        )
        self._entries = {EVERYWHERE: Added(tuple((row, _WEIGHT) for row in rows))}

    def run(self, forward: Callable[[UNet2DConditionModel], Tensor]) -> Tensor:
        with self._group.adding([self._entries] * _ROWS):
            return forward(self._unet)


def _with_peft(unet: UNet2DConditionModel, factors: Factors) -> UNet2DConditionModel:
    """The UNet with PEFT's layers, nothing merged."""
    import peft

    loaded: Any = unet
    loaded.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=_TARGETS))
    layers = dict(unet.named_modules())
    for name, (a, b) in factors.items():
        layer: Any = layers[name]
        layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = a, b
        layer.set_scale("default", _WEIGHT)
    assert not any(getattr(layer, "merged", False) for layer in layers.values())
    return unet.eval()


def _check(given: Mapping[str, Tensor]) -> None:
    """That all sides with the adapter agree and that it acts.

    Raises:
        AssertionError: otherwise; names the side.
    """
    want = given.get("PEFT", given["ours"]) - given["plain"]
    assert want.norm() > 1e-2 * given["plain"].norm(), "the adapter does nothing"
    off = (given["ours"] - given["plain"] - want).norm() / want.norm()
    assert off < _TOLERANCE, f"ours computes something else than PEFT: {off:.1e} off"
