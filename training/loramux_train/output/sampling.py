"""Sample pictures with the models that are being trained.

Takes a base's parts as the trainer holds them, and settings; gives pictures, drawn by diffusers' own pipelines. Leaves
no trace in the training: modes, devices and every random generator are afterwards as they were. Knows no loop.
"""

import gc
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor, nn

__all__ = ["BaseParts", "Read", "SampleSettings", "draw_samples", "without_adapter"]

Read = Callable[[str], tuple[Tensor, Tensor | None]]
"""A text as the UNet is told of it: [1, tokens, width], and of SDXL's second encoder [1, width]."""


@dataclass(frozen=True, slots=True)
class BaseParts:
    """A base in memory. text_encoders, tokenizers: one of each, or SDXL's two; scheduler: a configuration, with its
    `_class_name` and prediction type."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: tuple[nn.Module, ...]
    tokenizers: tuple[Any, ...]
    scheduler: Mapping[str, Any]

    def models(self) -> tuple[nn.Module, ...]:
        """All that have weights."""
        return self.unet, self.vae, *self.text_encoders


@dataclass(frozen=True, slots=True)
class SampleSettings:
    """The picture of prompt i has seed + i at every step. width, height: pixels."""

    prompts: tuple[str, ...]
    width: int
    height: int
    negative: str = ""
    seed: int = 0
    steps: int = 20
    guidance: float = 7.0


def draw_samples(parts: BaseParts, settings: SampleSettings, read: Read | None = None) -> list[Image.Image]:
    """A picture a prompt, one at a time, so that memory is that of one. read: where prompts have words that the
    tokenizers do not know; else the pipeline reads them."""
    with torch.no_grad(), _undisturbed(parts):
        pipeline = _pipeline(parts)
        pipeline.set_progress_bar_config(disable=True)
        return [_draw(pipeline, parts, settings, at, read) for at in range(len(settings.prompts))]


@contextmanager
def without_adapter(models: Sequence[nn.Module]) -> Generator[None]:
    """The base alone, where factors are PEFT's; nothing that trains notices."""
    layers: list[Any] = [m for model in models for m in model.modules() if hasattr(m, "_disable_adapters")]
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._disable_adapters = was


def _draw(pipeline: Any, parts: BaseParts, settings: SampleSettings, at: int, read: Read | None) -> Image.Image:
    generator = torch.Generator("cpu").manual_seed(settings.seed + at)
    with _numbers_of(parts.unet):
        latents: Tensor = pipeline(
            **_told(settings.prompts[at], settings.negative, read),
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            width=settings.width,
            height=settings.height,
            generator=generator,
            output_type="latent",
        ).images
    return _decoded(parts.vae, latents)


def _told(prompt: str, negative: str, read: Read | None) -> dict[str, Any]:
    """The pipeline's arguments for a picture; without a negative prompt it takes what is usual for the base."""
    if read is None:
        return {"prompt": prompt, "negative_prompt": negative or None}
    said: dict[str, Any] = {}
    for which, text in (("", prompt), *([("negative_", negative)] if negative else [])):
        said[f"{which}prompt_embeds"], pooled = read(text)
        if pooled is not None:
            said[f"{which}pooled_prompt_embeds"] = pooled
    return said


def _numbers_of(unet: UNet2DConditionModel) -> AbstractContextManager[object]:
    """Factors are fp32 in a base of 16 bits, which autocast brings together."""
    dtype = unet.conv_in.weight.dtype
    return nullcontext() if dtype == torch.float32 else torch.autocast(unet.device.type, dtype)


def _decoded(vae: AutoencoderKL, latents: Tensor) -> Image.Image:
    """In the VAE's own dtype, which may be another than the UNet's."""
    config: Any = vae.config
    unscaled = latents.to(vae.device, vae.dtype) / config.scaling_factor
    if (mean := getattr(config, "latents_mean", None)) and (deviation := getattr(config, "latents_std", None)):
        shape = (1, -1, 1, 1)
        unscaled = unscaled * unscaled.new_tensor(deviation).view(shape) + unscaled.new_tensor(mean).view(shape)
    pictures = vae.decode(unscaled, return_dict=False)[0].float()
    return VaeImageProcessor().postprocess(pictures, "pil")[0]  # type: ignore[return-value]


def _pipeline(parts: BaseParts) -> Any:
    config = dict(parts.scheduler)
    scheduler = getattr(diffusers, str(config["_class_name"])).from_config(config)
    models: dict[str, Any] = {"vae": parts.vae, "unet": parts.unet, "scheduler": scheduler}
    for number, end in enumerate(("", "_2")[: len(parts.text_encoders)]):
        models |= {f"text_encoder{end}": parts.text_encoders[number], f"tokenizer{end}": parts.tokenizers[number]}
    if len(parts.text_encoders) == 2:
        return StableDiffusionXLPipeline(**models, add_watermarker=False)
    return StableDiffusionPipeline(**models, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


@contextmanager
def _undisturbed(parts: BaseParts) -> Generator[None]:
    """Everything on the UNet's device and in evaluation mode; afterwards all as before, memory given back."""
    device = parts.unet.device
    cuda = [device] if device.type == "cuda" else []
    modes = [(module, module.training) for model in parts.models() for module in model.modules()]
    homes = [(model, next(model.parameters()).device) for model in parts.models()]
    with ExitStack() as after:
        after.enter_context(torch.random.fork_rng(cuda))
        after.callback(_restore, modes, homes)
        for model in parts.models():
            model.to(device).eval()
        yield


def _restore(modes: list[tuple[nn.Module, bool]], homes: list[tuple[nn.Module, torch.device]]) -> None:
    for module, training in modes:
        module.training = training
    for model, device in homes:
        model.to(device)
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
