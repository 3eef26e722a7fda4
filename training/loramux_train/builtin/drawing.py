"""Drawing: captions to pictures with models held in memory.

Takes the four parts of a base, captions and seeds; gives pictures in [-1, 1]. It is the yardstick of the recipe
(DPM++ 2M, 20 steps, guidance 3) and agrees with diffusers' StableDiffusionPipeline; it batches
freely and serves nobody.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from loramux_train.builtin.denoiser import SCHEDULE

STEPS = 20
GUIDANCE = 3.0
BATCH = 32


@dataclass(frozen=True, slots=True)
class Parts:
    """A base, part by part, all in fp32 on the CPU."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL


def load_parts(folder: Path) -> Parts:
    """Read a base in diffusers layout."""

    def part(kind: Any, name: str) -> Any:
        return kind.from_pretrained(folder / name, dtype=torch.float32).eval()

    return Parts(
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        part(CLIPTextModel, "text_encoder"),
        part(UNet2DConditionModel, "unet"),
        part(AutoencoderKL, "vae"),
    )


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Captions as padded ids [n, 77]."""
    batch = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    ids: Tensor = batch["input_ids"]  # type: ignore[assignment]
    return ids


def starting_noise(seed: int) -> Tensor:
    """The noise a picture of this seed starts from, whatever the batch."""
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def draw(parts: Parts, captions: list[str], seeds: list[int]) -> Tensor:
    """One picture for each caption and seed, [n, 3, 64, 64] in [-1, 1]."""
    pairs = list(zip(captions, seeds, strict=True))
    chunks = [pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH)]
    return torch.cat([_draw_batch(parts, chunk) for chunk in chunks])


def _draw_batch(parts: Parts, pairs: list[tuple[str, int]]) -> Tensor:
    prompts = [""] * len(pairs) + [caption for caption, _ in pairs]
    context = parts.text_encoder(token_ids(parts.tokenizer, prompts))[0]
    scheduler: Any = DPMSolverMultistepScheduler.from_config(SCHEDULE)
    scheduler.set_timesteps(STEPS)
    latents = torch.cat([starting_noise(seed) for _, seed in pairs]) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        rows = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
        plain, asked = parts.unet(rows, timestep, context).sample.chunk(2)
        latents = scheduler.step(plain + GUIDANCE * (asked - plain), timestep, latents).prev_sample
    return parts.vae.decode(latents / parts.vae.config["scaling_factor"]).sample.clamp(-1, 1)
