"""An adapter's file put into a base that draws.

Takes a base and a file; changes the base. The store reads the file, so that what is drawn is what a server would apply.
Knows no training.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from loramux_store import Store, UploadSpec
from loramux_store.forms.factors import Factors, conv_rows, read_factors
from loramux_train.builtin.drawing import Parts
from loramux_train.output.base_layout import canonical_path, layout_of


def factors_in(file: Path, parts: Parts) -> list[Factors]:
    """What a store makes of a file for this base, in the order of the modules' paths.

    Raises:
        Refused: as of a store.
    """
    layout = layout_of(_models(parts), "builtin")
    with TemporaryDirectory() as folder, Store.open(Path(folder)) as store:
        store.register_layout(layout)
        version = store.publish(file, UploadSpec("read", layout=layout.digest)).version
        assert version is not None
        return list(read_factors(store.compiled(version), layout))


@torch.no_grad()
def apply(parts: Parts, file: Path) -> None:
    """Put a file's factors, rank rows all of them, into a base that has none yet, at weight 1."""
    factors = {each.path: each for each in factors_in(file, parts)}
    for component, model in _models(parts).items():
        names = {canonical_path(component, name): name for name, _ in model.named_modules()}
        own = {names[path]: each for path, each in factors.items() if path.startswith(f"{component}.")}
        if own:
            _put_in(model, own)


def set_weights(parts: Parts, weight: float) -> None:
    """Scale an applied adapter's effect on the whole base, as a request's weight would."""
    for model in _models(parts).values():
        for layer in model.modules():
            if hasattr(layer, "lora_A"):
                layer.scaling["default"] = weight * layer.lora_alpha["default"] / layer.r["default"]  # type: ignore[index]


def _models(parts: Parts) -> dict[str, nn.Module]:
    return {"unet": parts.unet, "text_encoder": parts.text_encoder}


def _put_in(model: nn.Module, factors: dict[str, Factors]) -> None:
    ranks = {name: each.rank for name, each in factors.items()}
    alphas = {name: each.scale * each.rank for name, each in factors.items()}
    config = LoraConfig(r=1, lora_alpha=1, target_modules=list(factors), rank_pattern=ranks, alpha_pattern=alphas)  # type: ignore[arg-type]
    inject_adapter_in_model(config, model)
    for name, each in factors.items():
        layer: Any = model.get_submodule(name)
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        down.copy_(conv_rows(each.parts["a"], each.spec))
        up.copy_(each.parts["b"].T.reshape(up.shape))
