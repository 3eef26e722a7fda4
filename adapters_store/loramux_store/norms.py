"""The normalisations of a Stable Diffusion model, which its modules imply.

Takes the weight shapes of a layout's modules; gives {path: width} of the normalisations before them, in diffusers'
names. Knows no tensors and no layouts: the tests compare it with the real models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["norms_before"]

# A module's path, and that of the normalisation whose result it reads; both have its number of input channels.
_BEFORE = (
    (re.compile(r"(unet\..*resnets\.\d+)\.conv([12])\Z"), r"\1.norm\2"),
    (re.compile(r"(unet\..*attentions\.\d+)\.proj_in\Z"), r"\1.norm"),
    (re.compile(r"(unet\..*transformer_blocks\.\d+)\.attn([12])\.to_q\Z"), r"\1.norm\2"),
    (re.compile(r"(unet\..*transformer_blocks\.\d+)\.ff\.net\.0\.proj\Z"), r"\1.norm3"),
    (re.compile(r"unet\.conv_out\Z"), "unet.conv_norm_out"),
    (re.compile(r"(text_encoder.*layers\.\d+)\.self_attn\.q_proj\Z"), r"\1.layer_norm1"),
    (re.compile(r"(text_encoder.*layers\.\d+)\.mlp\.fc1\Z"), r"\1.layer_norm2"),
    # after the last layer, of the same width as every other
    (re.compile(r"(text_encoder(_2)?\.text_model)\.encoder\.layers\.0\.mlp\.fc1\Z"), r"\1.final_layer_norm"),
)


def norms_before(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """{path: channels} of every normalisation."""
    return {
        pattern.sub(name, path): shape[1]
        for path, shape in shapes.items()
        for pattern, name in _BEFORE
        if pattern.match(path)
    }
