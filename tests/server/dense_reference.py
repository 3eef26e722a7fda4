"""Pictures by diffusers' own models with a blend written into their weights: the reference for every way of adapting.

Takes a base and what each adapter changes; gives pictures. W0 + sum_i w_i (W'_i - W0), summed in float64, for every row
and every step. diffusers' own weights by block leave convolutions at 1, and it has no schedules.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from loramux_server.engine.blends import factor_at
from loramux_server.engine.lora_layers import block_of
from loramux_server.requests import BlendEntry, GenerationRequest

Change = Callable[[Tensor], Tensor]
"""From a base parameter in float64 to what the adapter at weight 1 adds to it."""


class Dense:
    """changes: by adapter and parameter, such as `unet.conv_in.weight`."""

    def __init__(self, base: Path, changes: Mapping[str, Mapping[str, Change]]) -> None:
        self.pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, dtype=torch.float32)
        self.changes = changes

    def written(self, model: torch.nn.Module, component: str, scales: dict[str, Any]) -> torch.nn.Module:
        """A copy with the blend; scales: adapter to a function of the module path."""
        written = deepcopy(model)
        for name, scale_of in scales.items():
            for parameter, change in self.changes[name].items():
                path, _, kind = parameter.rpartition(".")
                if not path.startswith(f"{component}."):
                    continue
                base, module = (module_of(each, path.removeprefix(f"{component}.")) for each in (model, written))
                before, now = (_value(each, kind) for each in (base, module))
                changed = now + scale_of(path) * change(before)
                setattr(module, kind, torch.nn.Parameter(changed, requires_grad=False))
        return written.float()

    @torch.inference_mode()
    def draw(self, request: GenerationRequest) -> np.ndarray:
        """The first picture of a guided request, by DDIM."""
        pipe, steps = self.pipe, request.steps or 0
        scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(steps)
        negative = request.blend if request.negative_blend is None else request.negative_blend
        rows = [(request.negative_prompt, negative), (request.prompt, request.blend)]
        texts = [self._text(text, blend) for text, blend in rows]
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(request.seed or 0))
        for step, t in enumerate(scheduler.timesteps):
            one, other = (
                self._unet(blend, step / steps)(latents, t, text).sample
                for (_, blend), text in zip(rows, texts, strict=True)
            )
            latents = scheduler.step(one + request.guidance_scale * (other - one), t, latents).prev_sample
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample[0]
        return ((decoded / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)

    def _text(self, text: str, blend: Sequence[BlendEntry]) -> Tensor:
        scales = {e.adapter: lambda path, e=e: (e.weight or 0) * e.parts.text_encoder for e in blend}
        encoder = self.written(self.pipe.text_encoder, "text_encoder", scales)
        return encoder(self.pipe.tokenizer(text, padding="max_length", return_tensors="pt").input_ids).last_hidden_state

    def _unet(self, blend: Sequence[BlendEntry], progress: float) -> Any:
        def scale(path: str, entry: BlendEntry) -> float:
            block = dict(entry.parts.blocks).get(block_of(path), 1.0)
            return (entry.weight or 0) * entry.parts.unet * factor_at(entry.schedule, progress) * block

        return self.written(self.pipe.unet, "unet", {e.adapter: lambda path, e=e: scale(path, e) for e in blend})


def _value(module: Any, kind: str) -> Tensor:
    """In float64; a bias that is not there is zero."""
    found = getattr(module, kind)
    return torch.zeros(module.weight.shape[0], dtype=torch.float64) if found is None else found.data.double()


def module_of(model: torch.nn.Module, path: str) -> Any:
    """transformers 5 builds CLIP without the level that files spell out."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return model.get_submodule(path.removeprefix("text_model."))
