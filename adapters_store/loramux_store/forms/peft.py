"""PEFT's form, a configuration and factors for each model, and diffusers', which has all models in one file.

Takes Factors; gives tensors by name and LoraConfig as a mapping. Both can say rank rows, and magnitudes of outputs
where every module of a model has them. Knows no files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from loramux_store.errors import Inexpressible
from loramux_store.forms.factors import Factors, conv_rows

__all__ = ["diffusers_file", "peft_folders"]

_PREFIX = "base_model.model."
_MAGNITUDE = "lora_magnitude_vector"
# diffusers 0.42.1 loads text encoders through transformers, which passes over magnitudes that lack it; PEFT over others
_IN_TEXT_ENCODERS = ".weight"


def diffusers_file(modules: Iterable[Factors]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata); the configurations are metadata. Raises Inexpressible."""
    tensors: dict[str, Tensor] = {}
    body: dict[str, Any] = {}
    for component, members in _by_component("diffusers", modules).items():
        ending = "" if component == "unet" else _IN_TEXT_ENCODERS
        for member in members:
            leaves = _leaves(member)
            if "m" in member.parts:
                leaves[_MAGNITUDE + ending] = leaves.pop(_MAGNITUDE)
            tensors |= {f"{member.path}.{leaf}": tensor for leaf, tensor in leaves.items()}
        config = _config("diffusers", component, members)
        body |= {f"{component}.{field}": value for field, value in config.items()}
    return tensors, {"lora_adapter_metadata": json.dumps(body, sort_keys=True)}


def peft_folders(modules: Iterable[Factors]) -> dict[str, tuple[dict[str, Tensor], str]]:
    """(tensors, adapter_config.json) by model: unet, text_encoder, text_encoder_2. Raises Inexpressible."""
    folders: dict[str, tuple[dict[str, Tensor], str]] = {}
    for component, members in _by_component("peft", modules).items():
        tensors = {f"{_PREFIX}{_inside(m.path)}.{leaf}": tensor for m in members for leaf, tensor in _leaves(m).items()}
        config = _config("peft", component, members)
        folders[component] = tensors, json.dumps(config, indent=2, sort_keys=True) + "\n"
    return folders


def _by_component(form: str, modules: Iterable[Factors]) -> dict[str, list[Factors]]:
    found: dict[str, list[Factors]] = {}
    for module in modules:
        if why := _unsayable(module):
            raise Inexpressible(form, module.path, f"{why}; kohya's form can say it")
        found.setdefault(module.path.partition(".")[0], []).append(module)
    return found


def _unsayable(module: Factors) -> str:
    kinds = {"w1": "a Kronecker product", "p1": "a Hadamard product", "delta": "a dense delta"}
    for part, kind in kinds.items():
        if part in module.parts:
            return f"its delta is {kind}, not rank rows"
    if "a" not in module.parts:
        return "only a bias or a normalisation is changed"
    if "bias" in module.parts:
        return "it changes a bias beside the weight"
    return "its magnitudes are those of inputs" if module.axis == "input" else ""


def _leaves(module: Factors) -> dict[str, Tensor]:
    ones = (1,) * (len(module.spec.shape) - 2)
    b = module.parts["b"].T
    leaves = {"lora_A.weight": conv_rows(module.parts["a"], module.spec), "lora_B.weight": b.reshape(*b.shape, *ones)}
    if "m" in module.parts:
        m = module.parts["m"]
        leaves[_MAGNITUDE] = m.reshape(1, -1, *ones) if ones else m
    return leaves


def _config(form: str, component: str, members: Sequence[Factors]) -> dict[str, Any]:
    """LoraConfig's fields; what most modules have is the default, patterns say the others."""
    decomposed = {bool(module.axis) for module in members}
    if len(decomposed) > 1:
        odd = next(module for module in members if not module.axis)
        raise Inexpressible(form, odd.path, f"other modules of {component} have magnitudes, and use_dora is for all")
    ranks = {_pattern(module.path): module.rank for module in members}
    alphas = {_pattern(module.path): module.scale * module.rank for module in members}
    r, alpha = _commonest(ranks), _commonest(alphas)
    return {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != r},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "target_modules": sorted(_inside(module.path) for module in members),
        "use_dora": decomposed == {True},
        "lora_dropout": 0.0,
        "bias": "none",
    }


def _commonest(table: Mapping[str, Any]) -> Any:
    return Counter(table.values()).most_common(1)[0][0]


def _inside(path: str) -> str:
    """The name inside its model, as transformers 5 builds CLIP: without a text_model around it."""
    return path.partition(".")[2].removeprefix("text_model.")


def _pattern(path: str) -> str:
    """PEFT looks for it at the end of a name; of a UNet at its beginning too, where names are never wrapped."""
    return f"^{_inside(path)}" if path.startswith("unet.") else _inside(path)
