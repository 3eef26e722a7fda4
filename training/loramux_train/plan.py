"""What a run will train, before anything is loaded: layers, ranks, parameters and memory.

Takes a base's modules and settings; gives a Plan, and its text. Knows no weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from loramux_train.adapter_settings import AdapterSettings, Group
from loramux_train.errors import BadSetting
from loramux_train.target_settings import TargetSettings
from loramux_train.targets import select
from loramux_train.token_settings import TokenSettings

_NO_TOKENS = TokenSettings()
_COPIES = {"adamw": 4.0, "adamw8bit": 2.5, "prodigy": 6.0}
"""fp32 tensors a parameter has: itself, its gradient, and what its optimiser keeps (Prodigy: two more)."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One layer: [outputs, inputs] or [outputs, inputs, height, width] of its weight; scale: of B A."""

    part: str
    path: str
    group: Group
    shape: tuple[int, ...]
    rank: int
    alpha: float
    scale: float
    dora: bool

    @property
    def parameters(self) -> int:
        """Numbers in A, B and, with DoRA, the lengths."""
        outputs, *inputs = self.shape
        size = 1
        for extent in inputs:
            size *= extent
        return self.rank * (outputs + size) + (outputs if self.dora else 0)


@dataclass(frozen=True, slots=True)
class Plan:
    """The layers that get factors. base_parameters: of all models that are held; bytes_each: of one of those;
    words: how many new ones; vector_parameters: of their vectors, in all text encoders."""

    layers: tuple[Planned, ...]
    base_parameters: int
    bytes_each: int
    optimiser: str
    averaged: bool
    words: int = 0
    vector_parameters: int = 0

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        return sum(layer.parameters for layer in self.layers) + self.vector_parameters

    @property
    def memory(self) -> int:
        """Estimated bytes: the base, and factors with gradients and optimiser; activations come on top."""
        trained = self.parameters * 4 * (_COPIES[self.optimiser] + self.averaged)
        return int(self.base_parameters * self.bytes_each + trained)

    def of(self, part: str) -> tuple[Planned, ...]:
        """The layers of one part of the base."""
        return tuple(layer for layer in self.layers if layer.part == part)

    def text(self) -> str:
        """The plan for people: a line for each part, block and group, then the sums."""
        rows = [("part", "block", "layers", "group", "rank", "parameters"), *_rows(self.layers)]
        words = [f"new words: {self.words}, {self.vector_parameters:,} parameters"] if self.words else []
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([
            *(lines if self.layers else []),
            *words,
            f"{len(self.layers)} layers, {self.parameters:,} parameters "
            f"({_size(self.parameters * 2)} in fp16), {self.parameters / self.base_parameters:.2%} of the base's",
            f"estimated memory {_size(self.memory)} and activations",
        ])  # fmt: skip


def make(
    parts: Mapping[str, nn.Module],
    targets: TargetSettings,
    adapter: AdapterSettings,
    optimiser: str,
    bytes_each: int,
    tokens: TokenSettings = _NO_TOKENS,
) -> Plan:
    """The plan for a base's modules.

    Raises:
        BadSetting: where the selection is empty, a rank exceeds what a layer can have, or is one of no layer.
    """
    chosen = () if tokens.alone else select(parts, targets)
    layers = tuple(
        _planned(target.part, target.path, target.group, _weight_shape(target.module), adapter) for target in chosen
    )
    groups = {layer.group for layer in layers}
    idle = [group for group, rank in adapter.ranks if rank is not None and group not in groups]
    if idle:
        raise BadSetting(f"adapter.ranks.{idle[0]} is {getattr(adapter.ranks, idle[0])}, but no layer of that group is "
                         "trained; choose some in targets, or leave it out")  # fmt: skip
    vectors = sum(token.vectors for token in tokens.new)
    encoders: list[Any] = [part for name, part in parts.items() if name != "unet"]
    width = sum(encoder.get_input_embeddings().embedding_dim for encoder in encoders)
    held = sum(parameter.numel() for part in parts.values() for parameter in part.parameters())
    averaged = adapter.ema is not None
    return Plan(layers, held, bytes_each, optimiser, averaged, len(tokens.new), vectors * width)


def _planned(part: str, path: str, group: Group, shape: tuple[int, ...], adapter: AdapterSettings) -> Planned:
    rank = adapter.rank_of(group)
    outputs, inputs = shape[0], 1
    for extent in shape[1:]:
        inputs *= extent
    if rank > min(outputs, inputs):
        raise BadSetting(f"adapter: rank {rank} of {group} is more than {part}.{path} can have, "
                         f"{min(outputs, inputs)} of [{outputs}, {inputs}]")  # fmt: skip
    alpha = float(rank) if adapter.alpha is None else adapter.alpha
    scale = alpha / (rank**0.5 if adapter.rslora else rank)
    return Planned(part, path, group, shape, rank, alpha, scale, adapter.dora)


def _weight_shape(module: nn.Module) -> tuple[int, ...]:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return tuple(weight.shape)


def _rows(layers: Sequence[Planned]) -> list[tuple[str, ...]]:
    sums: dict[tuple[str, str, str, str], tuple[int, int]] = {}
    for layer in layers:
        words = layer.path.split(".")
        block = "-" if layer.part != "unet" else words[0] if words[0] == "mid_block" else ".".join(words[:2])
        key = (layer.part, block, layer.group, str(layer.rank))
        count, size = sums.get(key, (0, 0))
        sums[key] = (count + 1, size + layer.parameters)
    return [
        (part, block, str(count), group, rank, f"{size:,}")
        for (part, block, group, rank), (count, size) in sums.items()
    ]


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
