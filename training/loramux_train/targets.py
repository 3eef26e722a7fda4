"""Which layers of a base get factors.

Takes a base's modules (weights are not looked at, so the meta device does) and settings; gives paths with their group.
Knows no rank and no training.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from torch import nn

from loramux_train.adapter_settings import Group
from loramux_train.errors import BadSetting
from loramux_train.target_settings import Preset, TargetSettings

_QKV = ("to_q", "to_k", "to_v")
_OUT = "to_out.0"
_FORWARD = ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
_CONVOLUTIONS = ("conv1", "conv2", "downsamplers.0.conv", "upsamplers.0.conv")
_TEXT_QKV = ("q_proj", "k_proj", "v_proj")
_TEXT_FORWARD = ("mlp.fc1", "mlp.fc2")

_UNET: dict[Preset, tuple[str, ...]] = {
    "attn-qkv": _QKV,
    "attn": (*_QKV, _OUT),
    "attn-ff": (*_QKV, _OUT, *_FORWARD),
    "locon": (*_QKV, _OUT, *_FORWARD, *_CONVOLUTIONS),
}
_TEXT: dict[Preset, tuple[str, ...]] = {
    "attn-qkv": _TEXT_QKV,
    "attn": (*_TEXT_QKV, "out_proj"),
    "attn-ff": (*_TEXT_QKV, "out_proj", *_TEXT_FORWARD),
    "locon": (*_TEXT_QKV, "out_proj", *_TEXT_FORWARD),
}
_SIDES = {"mid": "mid_block", "up": "up_blocks", "down": "down_blocks"}


@dataclass(frozen=True, slots=True)
class Target:
    """A layer that gets factors: its part (unet, text_encoder, text_encoder_2), path in it and group."""

    part: str
    path: str
    group: Group
    module: nn.Module


def select(parts: Mapping[str, nn.Module], settings: TargetSettings) -> tuple[Target, ...]:
    """The layers that settings mean, in the order of the modules.

    Raises:
        BadSetting: where a block is unknown, an expression is none, or nothing is left.
    """
    chosen = list(_in_unet(parts["unet"], settings))
    if not chosen:
        raise BadSetting(
            f"targets: no layer of the unet is of {settings.modules} in blocks {settings.blocks} with attention "
            f"{settings.attention}; expected blocks among {', '.join(blocks_with_attention(parts['unet']))}"
        )
    if settings.text_encoder:
        chosen += [
            target for name, part in parts.items() if name != "unet" for target in _in_text(name, part, settings)
        ]
    return tuple(chosen)


def blocks_with_attention(unet: nn.Module) -> tuple[str, ...]:
    """The blocks that have attention, from the encoder's first to the decoder's last."""
    found = {_block(path): None for path, _ in unet.named_modules() if ".attentions." in path}
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return tuple(sorted(found, key=lambda block: (order[block.partition(".")[0]], block)))


def article_blocks(unet: nn.Module) -> tuple[str, ...]:
    """The bottleneck, the innermost block with attention on either side, the decoder's last one with attention."""
    blocks = blocks_with_attention(unet)
    down = [block for block in blocks if block.startswith("down_blocks")]
    up = [block for block in blocks if block.startswith("up_blocks")]
    middle = [block for block in blocks if block == "mid_block"]
    return tuple(dict.fromkeys([*down[-1:], *middle, *up[:1], *up[-1:]]))


def _in_unet(unet: nn.Module, settings: TargetSettings) -> list[Target]:
    inside = _selector(unet, settings.blocks)
    found: list[Target] = []
    for path, module in unet.named_modules():
        group = _group(path, module, _UNET[settings.modules])
        if group and inside.search(path) and _attends(group, settings):
            found.append(Target("unet", path, group, module))
    return found


def _in_text(part: str, encoder: nn.Module, settings: TargetSettings) -> list[Target]:
    endings = tuple(f".{name}" for name in _TEXT[settings.modules])
    return [
        Target(part, path, "text_encoder", module)
        for path, module in encoder.named_modules()
        if path.endswith(endings) and isinstance(module, nn.Linear)
    ]


def _group(path: str, module: nn.Module, names: tuple[str, ...]) -> Group | None:
    if not isinstance(module, nn.Linear | nn.Conv2d) or not path.endswith(tuple(f".{name}" for name in names)):
        return None
    if path.endswith(_CONVOLUTIONS):
        return "convolution" if isinstance(module, nn.Conv2d) else None
    if ".attn1." in path:
        return "self_attention"
    return "cross_attention" if ".attn2." in path else "feed_forward"


def _attends(group: Group, settings: TargetSettings) -> bool:
    asked = settings.attention
    return asked == "both" or not group.endswith("_attention") or group == f"{asked}_attention"


def _selector(unet: nn.Module, blocks: str) -> re.Pattern[str]:
    """An expression that is found in the paths of the modules that are meant."""
    if blocks.startswith("re:"):
        try:
            return re.compile(blocks.removeprefix("re:"))
        except re.error as error:
            raise BadSetting(f"targets.blocks is {blocks}: no regular expression: {error}") from error
    if blocks == "all":
        return re.compile("")
    if blocks == "article":
        return _below(article_blocks(unet))
    if blocks in _SIDES:
        return _below((_SIDES[blocks],))
    return _below(_known(unet, tuple(name.strip() for name in blocks.split(","))))


def _below(paths: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"^(?:{'|'.join(map(re.escape, paths))})(?:\\.|$)")


def _known(unet: nn.Module, paths: tuple[str, ...]) -> tuple[str, ...]:
    every = [path for path, _ in unet.named_modules()]
    for path in paths:
        if path not in every:
            near = get_close_matches(path, [*_SIDES, "all", "article", *every], 1, 0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise BadSetting(f"targets.blocks: {path!r} is no module of the unet{hint} Expected all, article, mid, up, "
                             "down, module paths with commas, or re: and an expression")  # fmt: skip
    return paths


def _block(path: str) -> str:
    """`mid_block`, or `up_blocks.1` of any path in it."""
    words = path.split(".")
    return words[0] if words[0] == "mid_block" else ".".join(words[:2])
