"""A tiny base to train beside, in memory or as a folder, and batches made of a position alone."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from loramux_train.base import Base
from loramux_train.batch import Batch, Sizes
from loramux_train.data_set import DataSet
from loramux_train.outline import Outline
from loramux_train.output.facts import DataFacts

torch.set_num_threads(1)  # these tensors are small: threads that wait for a busy core would take longer than the work

TOKENIZER = Path(__file__).parents[2] / "server/loramux_server/builtin/base/tokenizer"
WORDS = ("a red apple", "a zib on blue", "", "two cats", "the moon", "a key")

DATA_SET = DataSet(DataFacts((), (16, 16)))
"""What is told of batches that are of no folder."""

_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
_VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
}


def outline(prediction: str = "epsilon", two: bool = False) -> Outline:
    """Two levels with attention in the first and the bottleneck; two: text encoders as SDXL has them."""
    unet: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "sample_size": 8,
        "in_channels": 4,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": 72 if two else 32,
        "norm_num_groups": 8,
        "attention_head_dim": 2,
    }
    if two:
        unet |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24 + 6 * 8,
        }
    first = _encoder(32)
    encoders = (first, _encoder(40, projection_dim=24, hidden_act="gelu")) if two else (first,)
    return Outline(Path("memory"), unet, _VAE, encoders, {**_SCHEDULER, "prediction_type": prediction})


def _encoder(width: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 8514,
        "hidden_size": width,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "bos_token_id": 8512,
        "eos_token_id": 8513,
        "pad_token_id": 8513,
        **more,
    }


def base(prediction: str = "epsilon", two: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0) -> Base:
    """Random weights, frozen."""
    torch.manual_seed(seed)
    made = outline(prediction, two)
    unet: Any = UNet2DConditionModel.from_config(made.unet)
    kinds: list[Any] = [CLIPTextModel, CLIPTextModelWithProjection]
    encoders = [kind(CLIPTextConfig(**config)) for kind, config in zip(kinds, made.encoders, strict=False)]
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    for model in (unet, *encoders):
        model.to(dtype).requires_grad_(False)
    return Base(made, unet, tuple(encoders), (tokenizer,) * len(encoders))


def write_base(folder: Path, prediction: str = "epsilon", two: bool = False) -> Path:
    """The same in diffusers layout."""
    made = base(prediction, two)
    parts: dict[str, Any] = {"unet": made.unet, "vae": AutoencoderKL.from_config(_VAE)}
    parts |= dict(zip(("text_encoder", "text_encoder_2"), made.text_encoders, strict=False))
    for name, part in parts.items():
        part.save_pretrained(folder / name, safe_serialization=True)
    for name in ("tokenizer", "tokenizer_2")[: len(made.text_encoders)]:
        shutil.copytree(TOKENIZER, folder / name)
    (folder / "model_index.json").write_text("{}")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(made.outline.scheduler))
    return folder


def write_pictures(folder: Path, count: int, edge: int = 16, words: str = "a zib key") -> Path:
    """Pictures of noise in colours of their own, each with a caption."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 90, (edge, edge, 3))
        colour = np.array([30 * number % 160, 90, 160 - 25 * number % 160])
        Image.fromarray((noise + colour).astype(np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"{words}, number {number}")
    return folder


@dataclass(frozen=True)
class MadeBatches:
    """Batches of random latents [count, 4, 8, 8]; length: how many there are, where that is asked."""

    count: int = 2
    length: int = 0
    weights: tuple[float, ...] = ()
    masked: bool = False
    seed: int = 0

    def __len__(self) -> int:
        return self.length

    def batch(self, position: int) -> Batch:
        """A function of the position alone."""
        random = torch.Generator().manual_seed(1000 * self.seed + position)
        latents = torch.randn(self.count, 4, 8, 8, generator=random)
        return Batch(
            latents=latents,
            captions=tuple(WORDS[(position + index) % len(WORDS)] for index in range(self.count)),
            weights=torch.tensor(self.weights or (1.0,) * self.count),
            masks=(torch.rand(self.count, 1, 8, 8, generator=random) > 0.5).float() if self.masked else None,
            sizes=(Sizes(height=16, width=16, top=1, left=2),) * self.count,
        )
