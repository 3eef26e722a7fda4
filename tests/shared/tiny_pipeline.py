"""A real Stable Diffusion pipeline of a few thousand parameters, and what diffusers and PEFT make of adapters on it.

Takes nothing; gives the pipeline, its layout, and the deltas that the peer computes.
"""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from loramux_store import Layout, ModuleSpec

__all__ = ["KINDS", "layout_of", "path_of", "peer_deltas", "tiny_pipeline"]

KINDS = {nn.Linear: "linear", nn.Conv2d: "conv2d"}


def tiny_pipeline() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=100, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
            projection_dim=24, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    return StableDiffusionPipeline(
        vae,
        text,
        None,
        unet,
        DDIMScheduler(steps_offset=1, clip_sample=False),
        None,
        None,
        requires_safety_checker=False,
    )


def path_of(component: str, name: str) -> str:
    bare = component == "text_encoder" and not name.startswith("text_model.")
    return f"{component}.{'text_model.' if bare else ''}{name}"


def _modules(pipeline: StableDiffusionPipeline) -> dict[str, nn.Module]:
    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    return {
        path_of(component, name): module
        for component, model in parts.items()
        for name, module in model.named_modules()
        if type(module) in KINDS
    }


def layout_of(pipeline: StableDiffusionPipeline) -> Layout:
    return Layout(
        "tiny",
        {p: ModuleSpec(KINDS[type(m)], tuple(m.weight.shape)) for p, m in _modules(pipeline).items()},
    )


def peer_deltas(pipeline: StableDiffusionPipeline) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for component in ("unet", "text_encoder"):
        for name, module in getattr(pipeline, component).named_modules():
            if hasattr(module, "get_delta_weight") and module.active_adapters:
                found[path_of(component, name)] = module.get_delta_weight(module.active_adapters[0]).detach()
    return found
