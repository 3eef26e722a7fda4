"""An adapter put into a base that draws.

Takes a base and an adapter; changes the base. Knows no file and no training.
"""

from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from loramux_train.adapter import Adapter
from loramux_train.builtin.drawing import Parts


@torch.no_grad()
def apply(parts: Parts, adapter: Adapter) -> None:
    """Put an adapter's factors into a base that has none yet, at weight 1."""
    for module, factors, prefix in (
        (parts.unet, adapter.unet, ""),
        (parts.text_encoder, adapter.text_encoder, _text_prefix(parts.text_encoder)),
    ):
        if not factors:
            continue
        paths = {(prefix + name).replace(".", "_"): name for name, _ in module.named_modules()}
        targets = {paths[path.replace(".", "_")]: path for path in factors}
        ranks = {target: factors[path].rank for target, path in targets.items()}
        alphas = {target: factors[path].alpha for target, path in targets.items()}
        config = LoraConfig(r=1, lora_alpha=1, target_modules=list(targets), rank_pattern=ranks, alpha_pattern=alphas)  # type: ignore[arg-type]
        inject_adapter_in_model(config, module)
        for target, path in targets.items():
            layer: Any = module.get_submodule(target)
            layer.lora_A["default"].weight.copy_(factors[path].down)
            layer.lora_B["default"].weight.copy_(factors[path].up)


def set_weights(parts: Parts, weight: float) -> None:
    """Scale an applied adapter's effect on the whole base."""
    _set_weight(parts.unet, weight)
    _set_weight(parts.text_encoder, weight)


def _set_weight(module: nn.Module, weight: float) -> None:
    """Scale the factors' effect as a request's weight would."""
    for layer in module.modules():
        if hasattr(layer, "lora_A"):
            layer.scaling["default"] = weight * layer.lora_alpha["default"] / layer.r["default"]  # type: ignore[index]


def _text_prefix(text_encoder: nn.Module) -> str:
    """What module paths lack of the names files use: transformers 5 dropped the `text_model` level."""
    return "" if hasattr(text_encoder, "text_model") else "text_model."
