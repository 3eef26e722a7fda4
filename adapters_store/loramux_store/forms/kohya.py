"""kohya's form, with LyCORIS' names for what is no LoRA: it can say every delta there is.

Takes Factors and a layout; gives tensors by name. Knows no files.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from loramux_store.errors import Inexpressible
from loramux_store.formats.naming import name_table
from loramux_store.formats.sgm import sgm_paths
from loramux_store.forms.factors import Factors, conv_rows
from loramux_store.layout import Layout

__all__ = ["kohya_tensors"]


def kohya_tensors(modules: Iterable[Factors], layout: Layout) -> dict[str, Tensor]:
    """fp32 tensors by name.

    Raises:
        Inexpressible: a module without a name of its own, a number outside float32.
    """
    names = _Names(layout)
    tensors: dict[str, Tensor] = {}
    for module in modules:
        stem = names.stem(module.path)
        for leaf, tensor in _leaves(module).items():
            if not torch.isfinite(tensor).all():
                raise Inexpressible("kohya", module.path, f"its {leaf} would lie outside float32")
            tensors[f"{stem}.{leaf}"] = tensor
    return tensors


class _Names:
    """kohya's names of a layout's modules; SDXL's UNet goes by the names of its original code there."""

    def __init__(self, layout: Layout) -> None:
        self._table = name_table(layout)
        self._two = "text_encoder_2" in layout.components
        unet = [path.removeprefix("unet.") for path in layout.targets if path.startswith("unet.")]
        self._sgm = sgm_paths(unet) if self._two else {}

    def stem(self, path: str) -> str:
        component, _, tail = path.partition(".")
        first = "lora_te1" if self._two else "lora_te"
        prefix = {"unet": "lora_unet", "text_encoder": first}.get(component, "lora_te2")
        name = self._sgm.get(tail, tail) if component == "unet" else tail
        stem = f"{prefix}_{name.replace('.', '_')}"
        if self._table.path(stem, None) != path:
            raise Inexpressible("kohya", path, f"its name {stem!r} is that of another module too")
        return stem


def _leaves(module: Factors) -> dict[str, Tensor]:
    parts = module.parts
    if module.spec.kind == "norm":
        return {leaf: parts[part] for leaf, part in (("w_norm", "weight"), ("b_norm", "bias")) if part in parts}
    leaves = _main(module)
    if "bias" in parts:
        leaves["diff_b"] = parts["bias"]
    if "m" in parts:  # the place of its 1 tells the axis
        ones = (1,) * (len(module.spec.shape) - 2)
        leaves["dora_scale"] = parts["m"].reshape(*((-1, 1) if module.axis == "output" else (1, -1)), *ones)
    return leaves


def _main(module: Factors) -> dict[str, Tensor]:
    parts, scale = module.parts, module.scale
    if "a" in parts:
        ones = (1,) * (len(module.spec.shape) - 2)
        up = parts["b"].T.reshape(*parts["b"].T.shape, *ones)
        return {"lora_down.weight": conv_rows(parts["a"], module.spec), "lora_up.weight": up} | _alpha(module)
    if "w1" in parts:  # two whole sides have no alpha: readers take their product as it is
        return {"lokr_w1": _times(scale, parts["w1"]), "lokr_w2": parts["w2"]}
    if "p1" in parts:
        names = {"hada_w1_a": "p1", "hada_w1_b": "q1", "hada_w2_a": "p2", "hada_w2_b": "q2"}
        return {leaf: parts[part] for leaf, part in names.items()} | _alpha(module)
    return {"diff": _times(scale, parts["delta"])} if "delta" in parts else {}


def _alpha(module: Factors) -> dict[str, Tensor]:
    """What divided by the rank is the scale; a LoHa's rank is that of its first product."""
    rank = module.rank or module.parts["q1"].shape[0]
    return {"alpha": torch.tensor(module.scale * rank, dtype=torch.float32)}


def _times(scale: float, part: Tensor) -> Tensor:
    return (scale * part.double()).float()
