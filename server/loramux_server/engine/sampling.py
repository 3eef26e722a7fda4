"""One picture's way through the timesteps: a diffusers scheduler object and the picture's own generator.

Takes the base's scheduler configuration and a picture's seed, sampler and steps; turns model predictions
into the next latents. It knows no model, no prompt and no adapter.
"""

import inspect
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)
from torch import Tensor

from loramux_server.requests import Sampler

_SCHEDULERS: dict[Sampler, type[Any]] = {
    Sampler.DDIM: DDIMScheduler,
    Sampler.PNDM: PNDMScheduler,
    Sampler.EULER: EulerDiscreteScheduler,
    Sampler.EULER_ANCESTRAL: EulerAncestralDiscreteScheduler,
    Sampler.DPMPP_2M: DPMSolverMultistepScheduler,
}


class ImageSampler:
    """The state of one picture between ticks. Latents are fp32 [1, C, h, w] on the engine's device.

    The first noise is drawn as diffusers' pipelines draw it: from a CPU generator of the picture's seed, on
    which ancestral samplers draw on.
    """

    def __init__(
        self,
        sampler: Sampler,
        scheduler_config: dict[str, Any],
        steps: int,
        seed: int,
        shape: tuple[int, int, int, int],
        device: torch.device,
    ) -> None:
        self._scheduler = _SCHEDULERS[sampler].from_config(scheduler_config)
        self._scheduler.set_timesteps(steps, device=device)
        generator = torch.Generator("cpu").manual_seed(seed)
        self.latents = torch.randn(shape, generator=generator).to(device) * self._scheduler.init_noise_sigma
        takes_generator = "generator" in inspect.signature(self._scheduler.step).parameters
        self._extra: dict[str, Any] = {"generator": generator} if takes_generator else {}
        self.position = 0

    @property
    def total(self) -> int:
        """Number of steps: UNet evaluations of this picture."""
        return len(self._scheduler.timesteps)

    @property
    def finished(self) -> bool:
        """Whether every step is made."""
        return self.position == self.total

    @property
    def timestep(self) -> Tensor:
        """The timestep of the next evaluation, a scalar tensor."""
        return self._scheduler.timesteps[self.position]

    def model_input(self) -> Tensor:
        """What the model sees next, [1, C, h, w]."""
        return self._scheduler.scale_model_input(self.latents, self.timestep)

    def advance(self, prediction: Tensor) -> None:
        """Takes the model's prediction [1, C, h, w] for `model_input` and moves one step on."""
        self.latents = self._scheduler.step(prediction, self.timestep, self.latents, **self._extra).prev_sample
        self.position += 1


def guide(prediction: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance, u + g (c - u), of rows [unconditional, conditional]; one row stays as it is."""
    if len(prediction) == 1:
        return prediction
    unconditional, conditional = prediction.chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)
