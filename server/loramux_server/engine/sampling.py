"""One picture's way through the timesteps: a diffusers scheduler object and the picture's own generator.

Takes the base's scheduler configuration, a picture's seed and how it is sampled; turns model predictions into the
next latents, and says what a sampler cannot do. It knows no model, no prompt and no adapter.
"""

import copy
import inspect
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from loramux_server.engine.image_latents import ImageLatents
from loramux_server.engine.inpainting import Beginning, begin
from loramux_server.engine.previews import foreseen
from loramux_server.errors import Violation
from loramux_server.requests import Sampler, SamplerFacts, Sampling, SigmaSchedule

_SDE = {"algorithm_type": "sde-dpmsolver++"}
_SCHEDULERS: dict[Sampler, tuple[type[Any], dict[str, Any]]] = {
    Sampler.DDIM: (DDIMScheduler, {}),
    Sampler.PNDM: (PNDMScheduler, {}),
    Sampler.EULER: (EulerDiscreteScheduler, {}),
    Sampler.EULER_ANCESTRAL: (EulerAncestralDiscreteScheduler, {}),
    Sampler.DPMPP_2M: (DPMSolverMultistepScheduler, {}),
    Sampler.HEUN: (HeunDiscreteScheduler, {}),
    Sampler.DPMPP_2M_SDE: (DPMSolverMultistepScheduler, _SDE),
    Sampler.DPMPP_SDE: (DPMSolverSinglestepScheduler, _SDE),
    Sampler.UNIPC: (UniPCMultistepScheduler, {}),
    Sampler.LCM: (LCMScheduler, {}),
}
_SIGMAS = {
    SigmaSchedule.KARRAS: "use_karras_sigmas",
    SigmaSchedule.EXPONENTIAL: "use_exponential_sigmas",
    SigmaSchedule.BETA: "use_beta_sigmas",
}


class ImageSampler:
    """The state of one picture between ticks. Latents are fp32 [1, C, h, w] on the engine's device.

    The first noise is drawn as diffusers' pipelines draw it: from a CPU generator of the picture's seed, on
    which ancestral samplers draw on. start: what the picture starts from where that is not noise alone.
    """

    def __init__(
        self,
        sampling: Sampling,
        scheduler_config: dict[str, Any],
        seed: int,
        shape: tuple[int, int, int, int],
        device: torch.device,
        start: ImageLatents | None = None,
    ) -> None:
        self._scheduler = _scheduler(sampling, json.dumps(scheduler_config))
        _set_timesteps(self._scheduler, sampling, device)
        first = _first(self._scheduler, sampling)
        self._steps: Tensor = self._scheduler.timesteps[first:]
        self._timesteps: list[float] = self._steps.tolist()
        generator = torch.Generator("cpu").manual_seed(seed)
        if start is None:
            noise = torch.randn(shape, generator=generator).to(device)
            beginning = Beginning(noise * self._scheduler.init_noise_sigma)
        else:
            if hasattr(self._scheduler, "set_begin_index"):
                self._scheduler.set_begin_index(first)
            beginning = begin(
                start, self._scheduler, self._steps[:1], pure=sampling.strength == 1, shape=shape, generator=generator
            )
        self.latents, self._beside, self._kept = beginning.latents, beginning.beside, beginning.kept
        takes_generator = "generator" in inspect.signature(self._scheduler.step).parameters
        self._extra: dict[str, Any] = {"generator": generator} if takes_generator else {}
        self.position = 0

    @property
    def total(self) -> int:
        """Number of steps: UNet evaluations of this picture."""
        return len(self._steps)

    @property
    def finished(self) -> bool:
        """Whether every step is made."""
        return self.position == self.total

    @property
    def progress(self) -> float:
        """Timesteps finished over all timesteps; samplers that evaluate one twice stay on it."""
        seen = self._timesteps[: self.position + 1]
        return (len(dict.fromkeys(seen)) - 1) / len(dict.fromkeys(self._timesteps))

    @property
    def timestep(self) -> Tensor:
        """The timestep of the next evaluation, a scalar tensor."""
        return self._steps[self.position]

    def model_input(self) -> Tensor:
        """What the model sees next, [1, C, h, w]: the latents, and what lies beside them for inpainting."""
        latents = self._scheduler.scale_model_input(self.latents, self.timestep)
        return latents if self._beside is None else torch.cat([latents, self._beside], dim=1)

    def foreseen(self, prediction: Tensor) -> Tensor:
        """Finished latents as the prediction for `model_input` has them; call it before `advance`."""
        alphas = self._scheduler.alphas_cumprod
        alpha = float(alphas[min(round(float(self.timestep)), len(alphas) - 1)])
        sample = self._scheduler.scale_model_input(self.latents, self.timestep)
        return foreseen(sample, prediction, alpha, self._scheduler.config["prediction_type"])

    def advance(self, prediction: Tensor) -> None:
        """Takes the model's prediction [1, C, h, w] for `model_input` and moves one step on."""
        self.latents = self._scheduler.step(prediction, self.timestep, self.latents, **self._extra).prev_sample
        self.position += 1
        if self._kept is not None:
            coming = self._steps[self.position : self.position + 1]
            self.latents = self._kept.put_back(self.latents, self._scheduler, coming)


def violations(sampling: Sampling, scheduler_config: dict[str, Any]) -> Sequence[Violation]:
    """What the sampler cannot do of what is asked on this base; empty where it can."""
    timing = replace(sampling, guidance_scale=0.0, guidance_rescale=0.0)  # guidance is no affair of the sampler's
    return _violations(timing, json.dumps(scheduler_config))


@lru_cache(maxsize=256)
def _violations(sampling: Sampling, config: str) -> tuple[Violation, ...]:
    """Kept, as most requests ask for what others have asked for. config: of the base, as JSON."""
    found: list[Violation] = []
    if sampling.sigma_schedule not in sigma_schedules(sampling.sampler):
        taken = ", ".join(sigma_schedules(sampling.sampler))
        found.append(
            Violation("sigma_schedule", f"is {sampling.sigma_schedule}, {sampling.sampler} takes only {taken}")
        )
    if sampling.timesteps and not takes_timesteps(sampling.sampler):
        found.append(Violation("timesteps", f"are given, {sampling.sampler} takes none"))
    if found:
        return tuple(found)
    scheduler = _scheduler(sampling, config)
    try:
        _set_timesteps(scheduler, sampling, torch.device("cpu"))
    except ValueError as error:  # what only this base's configuration rules out
        field = "timesteps" if sampling.timesteps else "steps"
        return (Violation(field, f"cannot be taken by {sampling.sampler} on this base: {error}"),)
    return tuple(_too_weak(scheduler, sampling))


def facts() -> tuple[SamplerFacts, ...]:
    """What each sampler takes."""
    return tuple(SamplerFacts(each, sigma_schedules(each), takes_timesteps(each)) for each in Sampler)


@cache
def sigma_schedules(sampler: Sampler) -> tuple[SigmaSchedule, ...]:
    """Those the sampler takes."""
    parameters = inspect.signature(_SCHEDULERS[sampler][0].__init__).parameters
    return (SigmaSchedule.BASE, *(schedule for schedule, option in _SIGMAS.items() if option in parameters))


@cache
def takes_timesteps(sampler: Sampler) -> bool:
    """Whether the timesteps themselves may be given."""
    return "timesteps" in inspect.signature(_SCHEDULERS[sampler][0].set_timesteps).parameters


def guide(prediction: Tensor, sampling: Sampling) -> Tensor:
    """Classifier-free guidance, u + g (c - u), of rows [unconditional, conditional]; one row stays as it is.

    guidance_rescale r mixes in the guided prediction with the standard deviation of c, (1 - r) p + r p std(c) / std(p)
    (arXiv:2305.08891, equations 15 and 16).
    """
    if len(prediction) == 1:
        return prediction
    unconditional, conditional = prediction.chunk(2)
    guided = unconditional + sampling.guidance_scale * (conditional - unconditional)
    if sampling.guidance_rescale == 0:
        return guided
    rescaled = guided * (conditional.std() / guided.std())
    return sampling.guidance_rescale * rescaled + (1 - sampling.guidance_rescale) * guided


def _scheduler(sampling: Sampling, config: str) -> Any:
    """A new one, of the base's configuration as JSON. Copied, which is a quarter of the work: diffusers reads many
    constructors' signatures to make one."""
    return copy.deepcopy(_pattern(sampling.sampler, sampling.sigma_schedule, config))


@lru_cache(maxsize=64)
def _pattern(sampler: Sampler, sigma_schedule: SigmaSchedule, config: str) -> Any:
    """What is copied, and never used itself."""
    scheduler, options = _SCHEDULERS[sampler]
    if sigma_schedule != SigmaSchedule.BASE:
        options = options | {name: schedule == sigma_schedule for schedule, name in _SIGMAS.items()}
    return scheduler.from_config(json.loads(config), **options)


def _first(scheduler: Any, sampling: Sampling) -> int:
    """Position of the first timestep that is made of all there are, as diffusers' pipelines cut them by strength."""
    if sampling.strength is None:
        return 0
    count = _count(scheduler, sampling)
    return (count - min(int(count * sampling.strength), count)) * scheduler.order


def _count(scheduler: Any, sampling: Sampling) -> int:
    """What strength is a share of: the pipelines count evaluations where timesteps are given, otherwise steps."""
    return len(scheduler.timesteps) if sampling.timesteps else sampling.steps


def _too_weak(scheduler: Any, sampling: Sampling) -> list[Violation]:
    """What is wrong with a strength that leaves no step."""
    count, there = _count(scheduler, sampling), len(scheduler.timesteps)
    fewest = max(1, count - math.ceil(there / scheduler.order) + 1)
    if sampling.strength is None or int(count * sampling.strength) >= fewest:
        return []
    said = f"is {sampling.strength}, which leaves no step of {count}, expected at least {fewest}/{count}"
    return [Violation("strength", said)]


def _set_timesteps(scheduler: Any, sampling: Sampling, device: torch.device) -> None:
    if sampling.timesteps:
        scheduler.set_timesteps(timesteps=list(sampling.timesteps), device=device)
    else:
        scheduler.set_timesteps(sampling.steps, device=device)
