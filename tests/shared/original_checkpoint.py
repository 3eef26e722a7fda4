"""Writes the models of a pipeline under the names of Stable Diffusion's original checkpoints.

The names are those of the published files, as diffusers' conversion scripts list them; nothing here comes from what
reads them.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip


def checkpoint(unet: Any, vae: Any, encoders: list[Any]) -> dict[str, Tensor]:
    """{name: tensor}; of one encoder the family is told by its activation: CLIP's own has quick_gelu."""
    tensors = {f"model.diffusion_model.{_unet_name(unet, n)}": t for n, t in unet.state_dict().items()}
    for name, tensor in vae.state_dict().items():
        conv = "attentions" in name and name.endswith("weight") and tensor.ndim == 2
        tensors[f"first_stage_model.{_vae_name(vae, name)}"] = tensor[:, :, None, None] if conv else tensor
    if len(encoders) == 2:
        tensors |= _clip("conditioner.embedders.0.transformer.", encoders[0])
        tensors |= _open_clip("conditioner.embedders.1.model.", encoders[1], more=0)
    elif encoders[0].config.hidden_act == "quick_gelu":
        tensors |= _clip("cond_stage_model.transformer.", encoders[0])
    else:  # the file of SD 2 has the layer that no one reads
        tensors |= _open_clip("cond_stage_model.model.", encoders[0], more=1)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _unet_name(unet: Any, name: str) -> str:
    for new, old in _UNET.items():
        if name.startswith(f"{new}."):
            return old + name.removeprefix(new)
    per_level, depth = unet.config.layers_per_block + 1, len(unet.config.block_out_channels)
    side, _, rest = name.partition(".")
    if side == "mid_block":
        kind, index, inner = rest.split(".", 2)
        place = "middle_block.1" if kind == "attentions" else f"middle_block.{2 * int(index)}"
        return f"{place}.{_inside(kind, inner)}"
    level, kind, index, inner = rest.split(".", 3)
    number = per_level * int(level)
    if side == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{number + per_level}.0.op.{inner.removeprefix('conv.')}"
        return f"input_blocks.{number + int(index) + 1}.{int(kind == 'attentions')}.{_inside(kind, inner)}"
    if kind == "upsamplers":
        attends = "CrossAttn" in unet.config.up_block_types[int(level)]
        return f"output_blocks.{number + per_level - 1}.{1 + attends}.{inner}"
    assert int(level) < depth
    return f"output_blocks.{number + int(index)}.{int(kind == 'attentions')}.{_inside(kind, inner)}"


def _inside(kind: str, inner: str) -> str:
    if kind == "attentions":
        return inner
    layer, _, rest = inner.partition(".")
    return f"{_RESNET[layer]}.{rest}"


def _vae_name(vae: Any, name: str) -> str:
    last = len(vae.config.block_out_channels) - 1
    rules: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
        (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{last - int(m[1])}.block"),
        (r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"group_norm", "norm"), (r"to_([qkv])\.", r"\1."), (r"to_out\.0", "proj_out"),
        (r"conv_norm_out", "norm_out"), (r"conv_shortcut", "nin_shortcut"),
    ]  # fmt: skip
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _canonical(encoder: Any) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in encoder.state_dict().items():
        yield name if name.startswith("text_") else f"text_model.{name}", tensor


def _clip(prefix: str, encoder: Any) -> dict[str, Tensor]:
    found = {f"{prefix}{name}": tensor for name, tensor in _canonical(encoder)}
    return found | {f"{prefix}text_model.embeddings.position_ids": torch.arange(77)[None]}


def _open_clip(prefix: str, encoder: Any, *, more: int) -> dict[str, Tensor]:
    found = dict(_open_clip_names(dict(_canonical(encoder))))
    width = encoder.config.hidden_size
    layer = {n: t for n, t in found.items() if n.startswith("transformer.resblocks.0.")}
    for number in range(encoder.config.num_hidden_layers, encoder.config.num_hidden_layers + more):
        found |= {name.replace("blocks.0.", f"blocks.{number}."): tensor.clone() for name, tensor in layer.items()}
    found.setdefault("text_projection", torch.zeros(width, width))
    found["logit_scale"] = torch.tensor(1.0)
    return {f"{prefix}{name}": tensor for name, tensor in found.items()}


def _open_clip_names(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    whole = {
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    inside = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for name, tensor in tensors.items():
        if name in whole:
            yield whole[name], tensor
            continue
        if name == "text_projection.weight":
            yield "text_projection", tensor.T
            continue
        match = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        assert match, name
        number, layer, kind = match.groups()
        block = f"transformer.resblocks.{number}"
        if layer in inside:
            yield f"{block}.{inside[layer]}.{kind}", tensor
        elif layer == "self_attn.out_proj":
            yield f"{block}.attn.out_proj.{kind}", tensor
        elif layer == "self_attn.q_proj":
            stem = f"text_model.encoder.layers.{number}.self_attn"
            yield f"{block}.attn.in_proj_{kind}", torch.cat([tensors[f"{stem}.{p}_proj.{kind}"] for p in "qkv"])
