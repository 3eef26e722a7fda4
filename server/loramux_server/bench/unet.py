"""A UNet of Stable Diffusion 1.5's shapes with one adapter in its attention: against the same UNet as loaded, and
against PEFT's. On a card in fp16, as forwards are launched and as they are captured.

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

from loramux_kernels import default_impl
from loramux_server.bench.card import elapsed
from loramux_server.bench.harness import Row, medians, processor
from loramux_server.bench.shapes import SD15, TEXT_TOKENS
from loramux_server.engine.blends import EVERYWHERE, Added
from loramux_server.engine.captured import on_card
from loramux_server.engine.fused_attention import fuse_projections
from loramux_server.engine.layer_group import LayerGroup
from loramux_server.engine.lora_layers import LoraLinear, wrap
from loramux_server.engine.module_factors import ModuleFactors

RANK = 16
_WEIGHT = 0.7
_REPEATS = 7
_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
_GROUP = "unet.attention"
_ROWS = 2  # a guided picture
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}  # of what the adapter changes

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""Layer name in the UNet to (a [r, K], b [N, r])."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is measured. side: of the latents; config: of diffusers' UNet, beside its defaults."""

    name: str
    side: int
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])


_CONFIG = {"cross_attention_dim": 768, "attention_head_dim": 8}
SHAPE = Shape(SD15.replace("512x512", "256x256"), 32, _CONFIG)
ON_CARD = Shape(SD15, 64, _CONFIG)
_CPU = torch.device("cpu")


def measure() -> list[Row]:
    """Forwards of guided pictures: of one on the CPU, of one and of eight on a card."""
    if not torch.cuda.is_available():
        return measure_at(SHAPE, _REPEATS)
    device = torch.device("cuda")
    return [row for count in (2, 16) for row in measure_at(ON_CARD, _REPEATS, device, count)]


@torch.inference_mode()
def measure_at(shape: Shape, repeats: int, device: torch.device = _CPU, count: int = _ROWS) -> list[Row]:
    """The sides are checked to compute the same, then timed in turn. count: rows of the forward, which on a card all
    have the one adapter."""
    torch.manual_seed(0)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    with device:
        plain: Any = UNet2DConditionModel(**shape.config).eval()
        latents = torch.randn(count, 4, shape.side, shape.side, dtype=dtype)
        text = torch.randn(count, TEXT_TOKENS, plain.config["cross_attention_dim"], dtype=dtype)
        timesteps = torch.full((count,), 500.0)
    plain.to(dtype=dtype, memory_format=torch.channels_last if device.type == "cuda" else torch.contiguous_format)
    with device:
        factors = _factors(plain)

    def forward(unet: UNet2DConditionModel) -> Tensor:
        return unet(latents, timesteps, text, return_dict=False)[0]

    ours = _Ours(_sharing(plain, shape), factors, device, count)
    sides: dict[str, Callable[[], Tensor]] = {"no adapter": lambda: forward(plain), "ours": lambda: ours.run(forward)}
    if find_spec("peft"):
        theirs = _with_peft(_sharing(plain, shape), factors)
        sides["PEFT"] = lambda: forward(theirs)
    _check({name: side() for name, side in sides.items()}, dtype)
    what = f"forward of {shape.name}, {count // 2} guided, rank {RANK} in its attention"
    if device.type == "cpu":
        return _rows(f"{what}, processor time", medians(sides, repeats, processor, warm=True), "<=1.10")
    launched = medians(sides, repeats, elapsed, warm=True)
    capture = on_card(device)
    graphs = {name: capture(side) for name, side in sides.items()}  # their results are kept: they share no memory
    captured = medians({name: replay for name, (replay, _) in graphs.items()}, repeats, elapsed)
    return [*_times(what, launched, captured), *_rows(f"{what}, captured", captured, "<=1.10")]


def _rows(what: str, taken: Mapping[str, float], bound: str) -> list[Row]:
    rows = [Row(f"{what}: ours / no adapter", taken["ours"] / taken["no adapter"], "x", bound)]
    if "PEFT" in taken:
        rows.append(Row(f"{what}: ours / PEFT", taken["ours"] / taken["PEFT"], "x", "<=1"))
        rows.append(Row(f"{what}: PEFT / no adapter", taken["PEFT"] / taken["no adapter"], "x"))
    return rows


def _times(what: str, launched: Mapping[str, float], captured: Mapping[str, float]) -> list[Row]:
    """What capturing is worth, and what a server that captures saves against PEFT as people run it."""
    sides = [
        (name, how, taken)
        for how, each in (("launched", launched), ("captured", captured))
        for name, taken in each.items()
    ]
    rows = [Row(f"{what}: {name}, {how}", taken * 1e3, "ms") for name, how, taken in sides]
    if "PEFT" in launched:
        rows.append(Row(f"{what}: ours captured / PEFT launched", captured["ours"] / launched["PEFT"], "x", "<=1"))
    return rows


def _factors(unet: UNet2DConditionModel) -> Factors:
    """Random ones that change what a layer gives by a good part of it."""
    return {
        name: (
            (torch.randn(RANK, layer.in_features) / math.sqrt(layer.in_features)).to(layer.weight.dtype),
            (torch.randn(layer.out_features, RANK) / math.sqrt(RANK)).to(layer.weight.dtype),
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

    def __init__(self, unet: UNet2DConditionModel, factors: Factors, device: torch.device, rows: int) -> None:
        self._unet, self._rows = unet, rows
        groups = wrap({"unet": unet}, default_impl(device))
        if default_impl(device) == "triton":
            fuse_projections(unet)
        for group in groups.values():
            group.open(RANK + 1, device)
        self._group: LayerGroup = groups[_GROUP]
        taken = self._group.rows.take(RANK)
        assert {f"unet.{name}" for name in factors} == self._group.layers.keys()
        assert all(isinstance(layer, LoraLinear) for layer in self._group.layers.values())
        self._group.write(
            {_GROUP: taken},
            {f"unet.{name}": ModuleFactors({"a": a, "b": b.mT}, 1.0) for name, (a, b) in factors.items()},
        )
        self._entries = {EVERYWHERE: Added(tuple((row, _WEIGHT) for row in taken))}

    def run(self, forward: Callable[[UNet2DConditionModel], Tensor]) -> Tensor:
        with self._group.adding([self._entries] * self._rows):
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


def _check(given: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """That all sides with the adapter agree and that it acts.

    Raises:
        AssertionError: otherwise; names the side.
    """
    base, ours = given["no adapter"].float(), given["ours"].float()
    want = given.get("PEFT", ours).float() - base
    assert want.norm() > 1e-2 * base.norm(), "the adapter does nothing"
    off = (ours - base - want).norm() / want.norm()
    assert off < _TOLERANCE[dtype], f"ours computes something else than PEFT: {off:.1e} off"
