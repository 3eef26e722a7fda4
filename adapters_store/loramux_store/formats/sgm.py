"""The names of UNet blocks in the original Stable Diffusion code (sgm, LDM).

Takes a layout's UNet paths; gives {diffusers path: sgm path}. Counts blocks in the layout itself,
so it holds for any depth. Knows no prefixes and no tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["sgm_paths"]

_FIXED = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "norm2": "out_layers.0",
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(
    r"(?P<side>down_blocks|up_blocks)\.(?P<i>\d+)\."
    r"(?P<what>resnets|attentions|downsamplers|upsamplers)\.(?P<j>\d+)\.(?P<rest>.+)\Z"
)
_MID = re.compile(r"mid_block\.(?P<what>resnets|attentions)\.(?P<j>\d+)\.(?P<rest>.+)\Z")


def sgm_paths(paths: Iterable[str]) -> dict[str, str]:
    """{diffusers path: sgm path} for the UNet paths (without `unet.`) that have one."""
    known = list(paths)
    blocks = _Blocks(known)
    table = {path: _FIXED[path] for path in known if path in _FIXED}
    for path in known:
        name = _mid(path) or blocks.name(path)
        if name:
            table[path] = name
    return table


class _Blocks:
    """Where the blocks of a UNet begin in the flat sgm numbering."""

    def __init__(self, paths: list[str]) -> None:
        found = [match for path in paths if (match := _BLOCK.match(path))]
        self.resnets: dict[tuple[str, int], int] = {}
        for match in found:
            if match["what"] == "resnets":
                at = match["side"], int(match["i"])
                self.resnets[at] = max(self.resnets.get(at, 0), int(match["j"]) + 1)
        self.attended = {(match["side"], int(match["i"])) for match in found if match["what"] == "attentions"}

    def name(self, path: str) -> str | None:
        match = _BLOCK.match(path)
        if not match:
            return None
        side, i, j, rest = match["side"], int(match["i"]), int(match["j"]), match["rest"]
        count = self.resnets.get((side, i), 0)
        first = self._first(side, i)
        stem = "input_blocks" if side == "down_blocks" else "output_blocks"
        if match["what"] == "resnets":
            return _resnet(f"{stem}.{first + j}.0", rest)
        if match["what"] == "attentions":
            return f"{stem}.{first + j}.1.{rest}"
        if match["what"] == "downsamplers":
            return f"{stem}.{first + count}.0.op"
        # the upsampler is the last part of the last resnet's block
        part = 2 if (side, i) in self.attended else 1
        return f"{stem}.{first + count - 1}.{part}.conv"

    def _first(self, side: str, i: int) -> int:
        before = sum(count for (name, k), count in self.resnets.items() if name == side and k < i)
        # block 0 is conv_in; each downsampler is a block of its own
        return before + 1 + i if side == "down_blocks" else before


def _mid(path: str) -> str | None:
    match = _MID.match(path)
    if not match:
        return None
    j = int(match["j"])
    if match["what"] == "attentions":
        return f"middle_block.{2 * j + 1}.{match['rest']}"
    return _resnet(f"middle_block.{2 * j}", match["rest"])


def _resnet(stem: str, rest: str) -> str | None:
    return f"{stem}.{_RESNET[rest]}" if rest in _RESNET else None
