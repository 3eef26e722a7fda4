"""What diffusers calls each sampler, its variant and its spread of noise levels."""

from collections.abc import Mapping
from typing import Any

import diffusers

from loramux_server.requests import GenerationRequest, Sampler, SigmaSchedule

_SDE = {"algorithm_type": "sde-dpmsolver++"}
_CLASSES: dict[Sampler, tuple[Any, dict[str, Any]]] = {
    Sampler.DDIM: (diffusers.DDIMScheduler, {}),
    Sampler.PNDM: (diffusers.PNDMScheduler, {}),
    Sampler.EULER: (diffusers.EulerDiscreteScheduler, {}),
    Sampler.EULER_ANCESTRAL: (diffusers.EulerAncestralDiscreteScheduler, {}),
    Sampler.DPMPP_2M: (diffusers.DPMSolverMultistepScheduler, {}),
    Sampler.HEUN: (diffusers.HeunDiscreteScheduler, {}),
    Sampler.DPMPP_2M_SDE: (diffusers.DPMSolverMultistepScheduler, _SDE),
    Sampler.DPMPP_SDE: (diffusers.DPMSolverSinglestepScheduler, _SDE),
    Sampler.UNIPC: (diffusers.UniPCMultistepScheduler, {}),
    Sampler.LCM: (diffusers.LCMScheduler, {}),
}


def peer_scheduler(request: GenerationRequest, config: Mapping[str, Any]) -> Any:
    """diffusers' scheduler for a request, with a pipeline's own configuration otherwise."""
    assert request.sampler is not None
    scheduler, options = _CLASSES[request.sampler]
    if request.sigma_schedule != SigmaSchedule.BASE:
        options = options | {f"use_{request.sigma_schedule}_sigmas": True}
    return scheduler.from_config(config, **options)
