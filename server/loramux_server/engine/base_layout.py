"""The layout of a base, from its configuration alone: no weights are read.

Takes a folder in diffusers layout; gives a Layout. It knows no store and no device.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from loramux_server.engine.base_parts import ENCODERS, named
from loramux_server.engine.lora_layers import wrap
from loramux_server.errors import BadBase
from loramux_store.layout import Layout, known_layouts

__all__ = ["read_layout"]

_KINDS: tuple[Any, ...] = (CLIPTextModel, CLIPTextModelWithProjection)


def read_layout(folder: Path, name: str) -> Layout:
    """What an adapter must fit there; under the known name where it is that of SD1, SD2 or SDXL, else under `name`.

    Raises:
        BadBase: where a configuration is missing or cannot be read; names the part.
    """
    with torch.device("meta"):
        models: dict[str, Any] = {"unet": _part(folder, "unet", lambda: _unet(folder / "unet" / "config.json"))}
        for part, kind in zip(ENCODERS, _KINDS, strict=True):
            if part == ENCODERS[0] or (folder / part).is_dir():
                models[part] = _part(folder, part, lambda part=part, kind=kind: kind(_text(folder / part)))
    groups = wrap(models).values()
    layout = Layout(name, {path: layer.spec for group in groups for path, layer in group.layers.items()})
    return next((known for known in known_layouts() if known.digest == layout.digest), layout)


def _part(folder: Path, part: str, build: Callable[[], Any]) -> Any:
    if not (folder / part / "config.json").is_file():
        raise BadBase(f"base {folder} has no {part}/config.json; expected a folder in diffusers layout")
    return named(folder, part, build)


def _unet(config: Path) -> Any:
    return UNet2DConditionModel.from_config(json.loads(config.read_text()))


def _text(folder: Path) -> Any:
    return CLIPTextConfig.from_pretrained(folder, local_files_only=True)
