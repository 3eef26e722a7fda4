"""What a row of the table of cases is: a file, what is said beside it, and what must become of it.

Takes nothing; gives the dataclasses of the rows and builders of small files. Uses nothing of loramux_store.formats:
what is expected of a row is written from the formulas of the families.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

import adapter_files as af
import adapter_kinds as kinds
import torch
from torch import Tensor

from loramux_store import Layout

__all__ = [
    "ALPHA", "BLOCK", "CONV", "DOWN", "KEY", "ONES", "STEM", "TEXT", "UP", "Accepted", "Case", "Elsewhere", "Refusal",
    "Rows", "Tensors", "draw", "good", "kinded", "lora", "of_kinds", "renamed", "stem_of",
]  # fmt: skip

Tensors = dict[str, Tensor]

BLOCK = "unet.down_blocks.1.attentions.0.transformer_blocks.0"
KEY = f"{BLOCK}.attn2.to_k"
"""A linear layer, [16, 24] in toy_sd1: only its shape tells the families apart."""
CONV = "unet.down_blocks.1.resnets.0.conv2"
TEXT = "text_encoder.text_model.encoder.layers.1"


def stem_of(path: str) -> str:
    """kohya's name of a UNet module."""
    return f"lora_unet_{path.removeprefix('unet.').replace('.', '_')}"


STEM = stem_of(KEY)
DOWN, UP, ALPHA = f"{STEM}.lora_down.weight", f"{STEM}.lora_up.weight", f"{STEM}.alpha"
ONES = torch.ones


@dataclass(frozen=True)
class Accepted:
    """deltas: of every module, float64; biases and magnitudes: of those that have them; scales, axes: where they are
    the point. bundled: vectors by trigger and text
    encoder; warnings: their codes, all of them; ignored: keys; evidence: words that it must hold."""

    deltas: Mapping[str, Tensor]
    layout: str = "toy_sd1"
    warnings: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    biases: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    scales: Mapping[str, float] = field(default_factory=dict[str, float])
    axes: Mapping[str, str] = field(default_factory=dict[str, str])
    vectors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    trigger: str | None = None
    bundled: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict[str, Mapping[str, Tensor]])
    evidence: str = ""


@dataclass(frozen=True)
class Refusal:
    """reason, and the key that the detail must name; None where it is the file as a whole. says: words of the text."""

    reason: str
    key: str | None
    says: str = ""


@dataclass(frozen=True)
class Elsewhere:
    """A case of more than one file: the test that has it."""

    test: str


@dataclass(frozen=True)
class Case:
    """content: tensors, or the bytes of a file; the rest is what an upload says of it."""

    content: Mapping[str, Tensor] | bytes
    becomes: Accepted | Refusal
    metadata: Mapping[str, str] | None = None
    layout: str | None = None
    config: str | None = None
    alpha: float | None = None
    trigger: str | None = None


Rows = dict[str, Callable[[], Case] | Elsewhere]


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers that fp16 holds."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half().float()


def good(path: str = KEY, rank: int = 2, layout: Layout = af.TOY_SD1) -> Tensors:
    """A LoRA of one module that has nothing wrong."""
    return af.kohya_tensors(af.factors(layout, [path], rank=rank, alpha=1.0))


def lora(
    *paths: str,
    layout: Layout = af.TOY_SD1,
    rank: int | None = None,
    alpha: float | None = 1.0,
    write: Callable[[Mapping[str, af.Factors]], Tensors] = af.kohya_tensors,
    change: Callable[[Tensors], Tensors] = dict,
    scale: float | None = None,
    said: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    **expected: object,
) -> Case:
    """An accepted LoRA of these modules. scale: of all, None: by alpha; said: of the upload; expected: of Accepted."""
    made = af.factors(layout, paths, rank=rank, alpha=alpha)
    deltas = {path: af.dense(module, scale) for path, module in made.items()}
    becomes = Accepted(deltas, **{"layout": layout.name} | expected)  # type: ignore[arg-type]
    return Case(change(write(made)), becomes, metadata, **(said or {}))  # type: ignore[arg-type]


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    """Every key with one part replaced."""
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def kinded(made: Mapping[str, kinds.Sample], change: Callable[[Tensors], Tensors] = dict, **expected: object) -> Case:
    """An accepted file of these deltas, for toy_sd1."""
    tensors = {name: tensor for path, each in made.items() for name, tensor in kinds.stem_tensors(path, each).items()}
    becomes = Accepted(
        {path: each.delta for path, each in made.items() if prod(each.delta.shape)},
        biases={path: each.bias for path, each in made.items() if each.bias is not None},
        magnitudes={path: each.magnitude for path, each in made.items() if each.magnitude is not None},
        axes={path: each.axis for path, each in made.items() if each.axis},
        **expected,  # type: ignore[arg-type]
    )
    return Case(change(tensors), becomes, layout="toy_sd1")


def of_kinds(made: Mapping[str, kinds.Make], **expected: object) -> Case:
    """The same, of random numbers."""
    generator = torch.Generator().manual_seed(1)
    samples = {path: make(af.TOY_SD1.modules[path].shape, generator) for path, make in made.items()}
    return kinded(samples, **expected)  # type: ignore[arg-type]
