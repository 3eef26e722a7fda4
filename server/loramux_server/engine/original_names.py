"""Weights of checkpoints in the original layout of Stable Diffusion, under the names of diffusers and transformers.

Takes {name: tensor} of a whole checkpoint and the configuration of a model; gives {name: tensor} of that model. It
knows no file. UNet and VAE are renamed by diffusers' own converters.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from diffusers.loaders import single_file_utils
from torch import Tensor

UNET = "model.diffusion_model."
VAE = "first_stage_model."
_OPEN_CLIP = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_STACKED = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")


def unet(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The UNet's; without its moving average, where the file has both."""
    convert: Any = single_file_utils.convert_ldm_unet_checkpoint
    return convert(_under(tensors, UNET, keep=True), config=config)


def vae(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The VAE's."""
    convert: Any = single_file_utils.convert_ldm_vae_checkpoint
    return convert(_under(tensors, VAE, keep=True), config=config)


def text_encoder(tensors: Mapping[str, Tensor], index: int, count: int) -> dict[str, Tensor]:
    """Those of text encoder `index` of `count`, as transformers names them."""
    stem = "cond_stage_model." if count == 1 else f"conditioner.embedders.{index}."
    clip = _under(tensors, f"{stem}transformer.")
    if clip:
        return {name.removeprefix("text_model."): tensor for name, tensor in clip.items()}
    found = dict(_from_open_clip(_under(tensors, f"{stem}model.")))
    if index == 0:
        return found
    # the second is a model with a projection, in which the encoder lies a level deeper
    deeper = {name if name.startswith("text_projection") else f"text_model.{name}": t for name, t in found.items()}
    return deeper


def _from_open_clip(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if name in _OPEN_CLIP:
            yield _OPEN_CLIP[name], tensor
        elif name == "text_projection":  # y = x P there, y = W x here
            yield "text_projection.weight", tensor.T.contiguous()
        elif stacked := _STACKED.fullmatch(name):
            layer, kind = stacked.groups()
            for part, one in zip("qkv", tensor.chunk(3), strict=True):
                yield f"encoder.layers.{layer}.self_attn.{part}_proj.{kind}", one
        elif (inside := _BLOCK.fullmatch(name)) and inside[2] in _IN_BLOCK:
            yield f"encoder.layers.{inside[1]}.{_IN_BLOCK[inside[2]]}.{inside[3]}", tensor


def _under(tensors: Mapping[str, Tensor], prefix: str, *, keep: bool = False) -> dict[str, Tensor]:
    start = 0 if keep else len(prefix)
    return {name[start:]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
