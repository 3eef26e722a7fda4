"""Every kind of delta beside plain LoRA: tensors as trainers store them, and what they mean.

Takes a module's shape and a generator of random numbers; gives a Sample: tensors by leaf, and the dense delta straight
from the formula of its family, in float64. Uses nothing of loramux_store.formats: it is the oracle.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

__all__ = ["KINDS", "Make", "Sample", "change", "decomposed", "stem_tensors"]


@dataclass(frozen=True)
class Sample:
    """leaves: tensors by leaf; delta: of the weight; bias: of the bias; magnitude and axis: of decomposition."""

    leaves: Mapping[str, Tensor]
    delta: Tensor
    bias: Tensor | None = None
    axis: str = ""
    magnitude: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)


Shape = tuple[int, ...]
Make = Callable[[Shape, torch.Generator], Sample]


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    """Numbers that fp16 holds."""
    return (torch.randn(shape, generator=generator) / 2).half().float()


def _double(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.double() for tensor in tensors)


def loha(rank: int, alpha: float | None) -> Make:
    """Delta = alpha / r (w1_a w1_b) * (w2_a w2_b), arXiv:2108.06098."""

    def make(shape: Shape, generator: torch.Generator) -> Sample:
        n, k = shape[0], prod(shape[1:])
        factors = [_random(generator, *size) for size in ((n, rank), (rank, k)) * 2]
        a1, b1, a2, b2 = _double(*factors)
        names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        scale = 1.0 if alpha is None else alpha / rank
        return Sample(_with(names, factors, alpha), scale * ((a1 @ b1) * (a2 @ b2)).reshape(shape))

    return make


def loha_tucker(rank: int, alpha: float) -> Make:
    """Each weight is sum_pq w_a[p,o] t[p,q,k] w_b[q,i]: LyCORIS' transposed outer factor."""

    def make(shape: Shape, generator: torch.Generator) -> Sample:
        leaves: dict[str, Tensor] = {}
        total = torch.full(shape, alpha / rank, dtype=torch.float64)
        for side in "12":
            core = _random(generator, rank, rank, *shape[2:])
            outer, inner = _random(generator, rank, shape[0]), _random(generator, rank, shape[1])
            leaves |= {f"hada_t{side}": core, f"hada_w{side}_a": outer, f"hada_w{side}_b": inner}
            total *= torch.einsum("pqhw,po,qi->oihw", *_double(core, outer, inner))
        return Sample(leaves | {"alpha": torch.tensor(alpha)}, total)

    return make


def lokr(
    first: tuple[int, int], one: int | None, two: int | None, alpha: float | None = None, *, tucker: bool = False
) -> Make:
    """Delta[a b0 + b, c d0 + d] = scale w1[a,c] w2[b,d]; first: shape of w1; ranks None: stored whole."""

    def make(shape: Shape, generator: torch.Generator) -> Sample:
        rows, columns = shape[0] // first[0], shape[1] // first[1]
        leaves: dict[str, Tensor] = {}
        if one is None:
            leaves["lokr_w1"] = _random(generator, *first)
            w1 = leaves["lokr_w1"].double()
        else:
            leaves["lokr_w1_a"], leaves["lokr_w1_b"] = (
                _random(generator, first[0], one),
                _random(generator, one, first[1]),
            )
            w1 = leaves["lokr_w1_a"].double() @ leaves["lokr_w1_b"].double()
        if two is None:
            leaves["lokr_w2"] = _random(generator, rows, columns, *shape[2:])
            w2 = leaves["lokr_w2"].double()
        elif tucker:
            core = _random(generator, two, two, *shape[2:])
            a, b = _random(generator, two, rows), _random(generator, two, columns)
            leaves |= {"lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b}
            w2 = torch.einsum("pqhw,po,qi->oihw", *_double(core, a, b))
        else:
            a, b = _random(generator, rows, two), _random(generator, two, columns * prod(shape[2:]))
            leaves |= {"lokr_w2_a": a, "lokr_w2_b": b}
            w2 = (a.double() @ b.double()).reshape(rows, columns, *shape[2:])
        rank = one if one is not None else two
        scale = 1.0 if rank is None or alpha is None else alpha / rank
        if alpha is not None:
            leaves["alpha"] = torch.tensor(alpha)
        product = torch.einsum("ac,bd...->abcd...", w1, w2)
        return Sample(leaves, scale * product.reshape(shape))

    return make


def full(shape: Shape, generator: torch.Generator) -> Sample:
    """A full difference, with one of the bias."""
    diff, bias = _random(generator, *shape), _random(generator, shape[0])
    return Sample({"diff": diff, "diff_b": bias}, diff.double(), bias.double())


def lora(rank: int, alpha: float, *, bias: bool = False) -> Make:
    """LoRA, with a difference of the bias beside it."""

    def make(shape: Shape, generator: torch.Generator) -> Sample:
        down, up = _random(generator, rank, *shape[1:]), _random(generator, shape[0], rank, *(1,) * (len(shape) - 2))
        leaves = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(alpha)}
        delta = alpha / rank * (up.double().flatten(1) @ down.double().flatten(1)).reshape(shape)
        if not bias:
            return Sample(leaves, delta)
        moved = _random(generator, shape[0])
        return Sample(leaves | {"diff_b": moved}, delta, moved.double())

    return make


def decomposed(make: Make, axis: str, style: str = "lycoris") -> Make:
    """With magnitudes of an axis, as LyCORIS or PEFT (outputs only) store them; some far from the norm of W0."""

    def made(shape: Shape, generator: torch.Generator) -> Sample:
        sample = make(shape, generator)
        size, ones = shape[0 if axis == "output" else 1], (1,) * (len(shape) - 2)
        m = (torch.rand(size, generator=generator) + 0.5).half().float()
        if style == "peft":
            leaf = {"lora_magnitude_vector": m.reshape(1, -1, 1, 1) if ones else m}
        else:
            leaf = {"dora_scale": m.reshape(*((size, 1) if axis == "output" else (1, size)), *ones)}
        return Sample({**sample.leaves, **leaf}, sample.delta, sample.bias, axis, m.double())

    return made


def _with(names: tuple[str, ...], factors: list[Tensor], alpha: float | None) -> dict[str, Tensor]:
    leaves = dict(zip(names, factors, strict=True))
    return leaves if alpha is None else leaves | {"alpha": torch.tensor(alpha)}


def change(sample: Sample, before: Tensor) -> Tensor:
    """What the adapter at weight 1 adds to a base weight: delta, or W' - W0, W' = m V / ||V||, V = W0 + delta."""
    if sample.magnitude is None:
        return sample.delta
    moved = before + sample.delta
    dims = [dim for dim in range(moved.dim()) if dim != (0 if sample.axis == "output" else 1)]
    shape = [-1 if dim not in dims else 1 for dim in range(moved.dim())]
    return sample.magnitude.view(shape) * moved / moved.square().sum(dims, keepdim=True).sqrt() - before


def stem_tensors(path: str, sample: Sample, two_encoders: bool = False) -> dict[str, Tensor]:
    """Under the names that kohya's scripts give a module."""
    component, _, tail = path.partition(".")
    prefix = {"unet": "lora_unet", "text_encoder": "lora_te1" if two_encoders else "lora_te"}.get(component, "lora_te2")
    stem = f"{prefix}_{tail.replace('.', '_')}"
    return {f"{stem}.{leaf}": tensor for leaf, tensor in sample.leaves.items()}


KINDS: dict[str, Make] = {
    "loha": loha(2, 1.0),
    "loha without alpha": loha(2, None),
    "loha of high rank": loha(6, 3.0),
    "lokr whole": lokr((2, 4), None, None, 7.0),
    "lokr with a larger first side": lokr((8, 4), None, None),
    "lokr, second side low-rank": lokr((2, 4), None, 1, 0.5),
    "lokr, first side low-rank": lokr((8, 8), 1, None, 0.5),
    "lokr, both low-rank": lokr((4, 8), 1, 2, 3.0),
    "full": full,
    "lora with a bias": lora(2, 1.0, bias=True),
}
