"""The comparator: a loop over PEFT's layers and diffusers' models, as diffusers' text-to-image script has it.

Takes a folder of pictures; gives steps. Every step opens its pictures, encodes them with the VAE and their captions
with the text encoder; `cached`, all of that was done before the first step.
"""

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from loramux_train import base
from loramux_train.base_settings import BUILTIN
from loramux_train.bench.setting import BATCH, CAPTIONS, EDGE, RANK, RATE, TARGETS, known_batch


class _Pictures(Dataset[dict[str, Tensor]]):
    """Opened, resized and tokenized when they are asked for."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self._files, self._tokenizer = sorted(folder.glob("*.png")), tokenizer

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        file = self._files[index]
        picture = Image.open(file).convert("RGB").resize((EDGE, EDGE), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
        return {"pixels": pixels, "ids": _ids(self._tokenizer, [file.with_suffix(".txt").read_text()])[0]}


class Plain:
    """A loop that can be stepped."""

    def __init__(self, folder: Path, cached: bool) -> None:
        cpu = torch.device("cpu")
        outline = base.outline_of(base.find(BUILTIN))
        models = base.load(outline, torch.float32, cpu)
        self._unet: Any = models.unet
        self._text: Any = models.text_encoders[0]
        self._tokenizer = models.tokenizers[0]
        self._vae = base.load_vae(outline, torch.float32, cpu)
        self._noise: Any = DDPMScheduler.from_config(outline.scheduler)
        self._unet.add_adapter(
            LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=list(TARGETS))
        )
        self.trained = [p for p in self._unet.parameters() if p.requires_grad]
        self._accelerator = Accelerator(cpu=True)
        optimiser = torch.optim.AdamW(self.trained, lr=RATE, weight_decay=1e-2)
        loader = DataLoader(_Pictures(folder, self._tokenizer), shuffle=True, batch_size=BATCH)
        prepared: Any = self._accelerator.prepare(self._unet, optimiser, loader, get_scheduler("constant", optimiser))
        self._unet, self._optimiser, loader, self._course = prepared
        self._unet.train()
        if cached:
            self._batches = cycle([self._encoded(batch) for batch in loader])
        else:
            self._batches = (self._encoded(batch) for _ in iter(int, 1) for batch in loader)

    def known_loss(self) -> float:
        """Before any step."""
        latents, noise, timesteps = known_batch()
        with torch.no_grad():
            context = self._text(_ids(self._tokenizer, CAPTIONS))[0]
            return self._loss(latents, context, noise, timesteps).item()

    def step(self) -> float:
        """One update; the loss."""
        latents, context = next(self._batches)
        with self._accelerator.accumulate(self._unet):
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, self._noise.config.num_train_timesteps, (len(latents),)).long()
            loss = self._loss(latents, context, noise, timesteps)
            told = self._accelerator.gather(loss.repeat(BATCH)).mean().item()
            self._accelerator.backward(loss)
            self._accelerator.clip_grad_norm_(self.trained, 1.0)
            self._optimiser.step()
            self._course.step()
            self._optimiser.zero_grad()
        return told

    def _encoded(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        latents = self._vae.encode(batch["pixels"]).latent_dist.sample() * self._vae.config.scaling_factor
        return latents, self._text(batch["ids"])[0].detach()

    def _loss(self, latents: Tensor, context: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        noised = self._noise.add_noise(latents, noise, timesteps)
        predicted = self._unet(noised, timesteps, context).sample
        return F.mse_loss(predicted.float(), self._noise.get_velocity(latents, noise, timesteps).float())


def _ids(tokenizer: Any, captions: Any) -> Tensor:
    return tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
