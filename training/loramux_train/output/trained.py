"""What was trained, module by module, and whether it is worth a file.

Takes the factors as the trainer holds them; gives the store's Factors, balanced so that none of them is lost when they
are rounded to fp16. Knows no file formats.

y = W0 x + s up (down x), s = alpha / rank, or alpha / sqrt(rank) where it is stabilised (rsLoRA, arXiv:2312.03732);
with magnitudes m (DoRA, arXiv:2402.09353) the weight is m V / ||V||, V = W0 + s up down, by output channel.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor

from loramux_store.forms.factors import Factors, flat_rows
from loramux_store.layout import Layout
from loramux_train.output.base_layout import canonical_path
from loramux_train.output.errors import NothingLearnt, Unsayable

__all__ = ["PARTS", "Part", "TrainedModule", "balanced", "factors_of", "scale_of"]

Part = Literal["unet", "text_encoder", "text_encoder_2"]
PARTS: tuple[Part, ...] = get_args(Part)

# The largest number of either factor is to be at least this. fp16 rounds to 2**-25 at worst below its normal range, so
# that even there an error is at most 2**-13 of the largest, which is what its 11 bits round the largest to.
_FLOOR = 2.0**-12


@dataclass(frozen=True, slots=True)
class TrainedModule:
    """One module's change.

    path: inside its model. down: [rank, Cin], of a convolution [rank, Cin, kh, kw]; up: [Cout, rank], of a convolution
    with two trailing ones or without; magnitude: of DoRA, one number a Cout in any shape. Any dtype and device.
    """

    part: Part
    path: str
    down: Tensor
    up: Tensor
    alpha: float
    rslora: bool = False
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return self.down.shape[0]

    @property
    def full_path(self) -> str:
        """The path that layouts use."""
        return canonical_path(self.part, self.path)


def scale_of(module: TrainedModule) -> float:
    """What up @ down is multiplied by."""
    return module.alpha / (math.sqrt(module.rank) if module.rslora else module.rank)


def factors_of(modules: Iterable[TrainedModule], layout: Layout) -> list[Factors]:
    """Balanced, in fp32 on the CPU, in the order of their paths.

    Raises:
        Unsayable: a module that the base does not have, or of another shape.
        NothingLearnt: a number that is not finite; every up is zero.
    """
    found = [_factors(module, layout) for module in sorted(modules, key=lambda module: module.full_path)]
    if not found:
        raise NothingLearnt("no module was trained: nothing was written")
    if not any(part.parts["b"].any() for part in found):
        raise NothingLearnt(
            "every up factor is zero: this adapter would change nothing, and was not written; "
            "raise the learning rate or train for longer"
        )
    return balanced(found)


def balanced(modules: Sequence[Factors]) -> list[Factors]:
    """The same deltas to the bit: factors are moved by powers of two only.

    Those of a module share what there is evenly; if the smallest would still be lost in fp16, all factors of the
    adapter grow, and every scale shrinks, by the same power: readers that know one alpha for a whole file stay right.
    """
    even = [_even(module) for module in modules]
    sizes = [size for module in even if (size := _size(module))]
    lift = max(0, math.ceil(math.log2(_FLOOR / min(sizes)))) if sizes else 0
    if not lift:
        return even
    grown = 2.0**lift
    return [
        replace(m, parts={**m.parts, "a": m.parts["a"] * grown, "b": m.parts["b"] * grown}, scale=m.scale / grown**2)
        for m in even
    ]


def _even(module: Factors) -> Factors:
    a, b = module.parts["a"], module.parts["b"]
    if not (a.any() and b.any()):
        return module
    half = round((math.log2(float(a.abs().max())) - math.log2(float(b.abs().max()))) / 2)
    return replace(module, parts={**module.parts, "a": a * 2.0**-half, "b": b * 2.0**half})


def _size(module: Factors) -> float:
    """The smaller of the factors' largest numbers; 0 where the delta is zero."""
    return min(float(module.parts[name].abs().max()) for name in "ab")


def _factors(module: TrainedModule, layout: Layout) -> Factors:
    path = module.full_path
    spec = layout.modules.get(path)
    if spec is None:
        raise Unsayable(f"{path}: the base {layout.name} has no such module")
    down, up = module.down.detach().float().cpu(), module.up.detach().float().cpu()
    wanted = (module.rank, *spec.shape[1:]), (spec.shape[0], module.rank)
    if tuple(down.shape) != wanted[0] or tuple(up.flatten(1).shape) != wanted[1]:
        got = f"down {tuple(down.shape)} and up {tuple(up.shape)}"
        raise Unsayable(f"{path}: got {got}, expected {wanted[0]} and {wanted[1]}")
    parts = {"a": flat_rows(down, spec), "b": up.flatten(1).T.contiguous()}
    if module.magnitude is not None:
        parts["m"] = module.magnitude.detach().float().cpu().flatten()
        if len(parts["m"]) != spec.shape[0]:
            raise Unsayable(f"{path}: got {len(parts['m'])} magnitudes, expected {spec.shape[0]}")
    if not all(part.isfinite().all() for part in parts.values()):
        raise NothingLearnt(f"{path}: its factors are not finite: training diverged, nothing was written")
    return Factors(path, spec, parts, scale_of(module), "output" if "m" in parts else "")
