"""diffusers' own pipeline with adapters through PEFT, one request after another: what the engine is measured against.

Takes a base folder and adapter files; gives pictures. diffusers brings PEFT in where it is installed.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from loramux_server.requests import Job


class Peer:
    """The pipeline with every adapter loaded; a blend is set before each request."""

    def __init__(self, base: Path, adapters: Mapping[str, Path]) -> None:
        pipe: Any = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
        with warnings.catch_warnings(action="ignore"):  # PEFT warns of every adapter after the first
            for name, file in adapters.items():
                pipe.load_lora_weights(file, adapter_name=name)
        self._pipe = pipe

    def draw(self, jobs: Sequence[Job]) -> list[np.ndarray]:
        """One picture [H, W, 3] uint8 for each job, one after another."""
        return [self._draw(job) for job in jobs]

    def _draw(self, job: Job) -> np.ndarray:
        blend = {weighted.version.adapter: weighted.weight for weighted in job.blend}
        self._pipe.set_adapters(list(blend), list(blend.values()))
        images = self._pipe(
            job.prompt,
            num_inference_steps=job.sampling.steps,
            guidance_scale=job.sampling.guidance_scale,
            width=job.width,
            height=job.height,
            generator=torch.Generator("cpu").manual_seed(job.seed),
        ).images
        return np.asarray(images[0])
