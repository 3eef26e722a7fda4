"""Writes tiny random bases in diffusers layout, with the built-in base's real tokenizer."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from loramux_server.app import BUILTIN_FOLDER

TOKENIZER = BUILTIN_FOLDER / "base" / "tokenizer"


def _unet(channels: tuple[int, ...], layers: int, text_width: int, **options: Any) -> UNet2DConditionModel:
    down = ("CrossAttnDownBlock2D",) * (len(channels) - 1) + ("DownBlock2D",)
    return UNet2DConditionModel(
        block_out_channels=channels,
        layers_per_block=layers,
        sample_size=16,
        down_block_types=down,
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(channels) - 1),
        cross_attention_dim=text_width,
        norm_num_groups=8,
        **{"attention_head_dim": 2, **options},
    )


def write_tiny_base(
    folder: Path, *, seed: int, channels: tuple[int, ...], layers: int, prediction: str, seen: int = 4
) -> Path:
    """A random Stable Diffusion 1.x pipeline in diffusers layout, with the built-in base's real tokenizer.

    seen: channels that the UNet takes; 9 of a base for inpainting.
    """
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(tokenizer, 32)),
        tokenizer=tokenizer,
        unet=_unet(channels, layers, 32, in_channels=seen),
        scheduler=PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, prediction_type=prediction, **BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


BETAS: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1
}  # fmt: skip


def _text_config(tokenizer: CLIPTokenizer, width: int, layers: int = 2, **options: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )


def _vae() -> AutoencoderKL:
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    # Random decoders draw nearly grey pictures; more contrast makes differences visible in 8 bits.
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 4
    return vae


def write_tiny_sd2(folder: Path) -> Path:
    """As SD 2.x: velocity, linear projections, heads by level, GELU, padding of its own, a text encoder that knows a
    projection width."""
    torch.manual_seed(2)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!")
    config = _text_config(tokenizer, 40, layers=3, projection_dim=24, hidden_act="gelu")
    StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(config),
        tokenizer=tokenizer,
        unet=_unet((16, 32), 1, 40, use_linear_projection=True, attention_head_dim=[2, 4]),
        scheduler=PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, prediction_type="v_prediction", **BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def write_tiny_sdxl(folder: Path) -> Path:
    """As SDXL: two text encoders of different widths and padding, the second with a projection, size conditioning."""
    torch.manual_seed(3)
    one, two = CLIPTokenizer.from_pretrained(TOKENIZER), CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!")
    StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(one, 32, layers=3)),
        text_encoder_2=CLIPTextModelWithProjection(
            _text_config(two, 40, layers=4, projection_dim=24, hidden_act="gelu")
        ),
        tokenizer=one,
        tokenizer_2=two,
        unet=_unet(
            (16, 32),
            1,
            72,
            use_linear_projection=True,
            attention_head_dim=[2, 4],
            transformer_layers_per_block=[1, 2],
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **BETAS),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def write_tiny_lcm(folder: Path) -> Path:
    """As a latent consistency model of Stable Diffusion 1: the guidance scale is an input of the UNet."""
    torch.manual_seed(4)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    unet = _unet((16, 32), 1, 32, time_cond_proj_dim=16)
    with torch.no_grad():
        unet.time_embedding.cond_proj.weight *= 20  # seen in the picture at random weights too
    LatentConsistencyModelPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(tokenizer, 32)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=LCMScheduler(set_alpha_to_one=True, **BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder
