"""The text encoder, the UNet and the noise schedule of the built-in base.

Takes nothing but numbers; gives untrained models of the shipped shape and the one noise schedule everything uses.
Knows no data and no training.
"""

from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from loramux_train.builtin.tokenizer import LENGTH

WIDTH = 128  # of the text encoder, so of cross-attention

# `clip_sample`, `set_alpha_to_one` and `skip_prk_steps` are for the schedulers that have them: this one configuration
# must serve DDIM, Euler, PNDM and DPM++ alike
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
}


def build_text_encoder(vocabulary: int) -> CLIPTextModel:
    """Two layers of CLIP (1.5 M parameters, most of them the embedding table)."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    return CLIPTextModel(config)


def build_unet(channels: tuple[int, int, int] = (32, 64, 96)) -> UNet2DConditionModel:
    """A three-level UNet with cross-attention at 16x16, 8x8 and in the middle."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,  # diffusers reads this as the number of heads
        norm_num_groups=8,
    )


class NoiseSchedule:
    """x_t = alpha x + sigma e; the network learns v = alpha e - sigma x."""

    def __init__(self) -> None:
        known = {key: value for key, value in SCHEDULE.items() if key in DDPMScheduler().config}
        kept = DDPMScheduler(**known).alphas_cumprod
        self.steps = len(kept)
        self._alpha, self._sigma = kept.sqrt(), (1 - kept).sqrt()

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The noised latents and the v the network should predict for them."""
        alpha = self._alpha[timesteps].view(-1, 1, 1, 1)
        sigma = self._sigma[timesteps].view(-1, 1, 1, 1)
        return alpha * latents + sigma * noise, alpha * noise - sigma * latents

    def sample_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform timesteps, one stratum an item, so that a small batch covers the whole range."""
        spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        return (spread * self.steps).long().clamp(max=self.steps - 1)
