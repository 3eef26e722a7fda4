"""Pictures: what is asked for, what comes back, and what happens meanwhile.

Takes and gives plain values; knows neither protobuf nor gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Literal, TypedDict

from loramux_client.image_source import ImageSource

Sampler = Literal["ddim", "pndm", "euler", "euler-a", "dpmpp-2m", "heun", "dpmpp-2m-sde", "dpmpp-sde", "unipc", "lcm"]
PromptSyntax = Literal["weighted", "plain"]
LongPrompt = Literal["chunks", "cut"]
ImageFormat = Literal["png", "jpeg", "webp", "latents"]
Priority = Literal["interactive", "normal", "batch"]
SigmaSchedule = Literal["karras", "exponential", "beta"]


SchedulePoint = tuple[float, float]
"""Progress in timesteps, 0 to 1, and the factor of the weight there."""


@dataclass(frozen=True, slots=True)
class Use:
    """One adapter of a blend: `ink`, or `ink@3` for its version 3. No weight: its default one.

    unet, text_encoder, text_encoder_2, blocks: factors of the weight in parts of the base; blocks are `down.0`, `mid`,
    `up.1`...; only SDXL has a second text encoder.
    schedule: factor of the weight over progress, in the UNet: straight lines between the points, level outside them;
    of two points at one place the later holds from there on.
    """

    adapter: str
    weight: float | None = None
    unet: float | None = None
    text_encoder: float | None = None
    blocks: Mapping[str, float] = field(default_factory=dict[str, float])
    schedule: Sequence[SchedulePoint] = ()
    text_encoder_2: float | None = None

    @classmethod
    def parse(cls, text: str) -> Use:
        """Reads NAME[@VERSION][=WEIGHT]; ValueError says what is wrong."""
        name, equals, weight = text.partition("=")
        if not name.strip():
            raise ValueError(f"{text!r} names no adapter; expected NAME[@VERSION][=WEIGHT]")
        if not equals:
            return cls(name)
        try:
            return cls(name, float(weight))
        except ValueError:
            raise ValueError(f"weight {weight!r} of adapter {name!r} is not a number") from None


Blend = Mapping[str, float | None] | Sequence[Use | str]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What SDXL is told of a picture's size, in pixels: before resizing, what was cut off, after cropping. What is left
    out is as the picture is."""

    original_width: int | None = None
    original_height: int | None = None
    crop_left: int | None = None
    crop_top: int | None = None
    target_width: int | None = None
    target_height: int | None = None


class Asking(TypedDict, total=False):
    """What may be asked besides the prompt. Whatever is left out, the server decides."""

    adapters: Blend
    """{"ink": 0.8}, or a sequence of Use("ink@3", weight) and names."""
    negative_adapters: Blend
    """Those of the unconditional row and the negative prompt; left out, they are the same, and empty means none."""
    negative_prompt: str
    prompt_syntax: PromptSyntax
    """weighted, the default: (more), [less], (word:1.3), BREAK; plain: every character is text."""
    long_prompt: LongPrompt
    """chunks, the default: all of it counts; cut: the first 75 tokens do."""
    clip_skip: int
    """Layers of the text encoders left out at their end, counted from what the base reads by default."""
    sampler: Sampler
    sigma_schedule: SigmaSchedule
    """Spread of noise levels; not every sampler takes every one."""
    steps: int
    timesteps: Sequence[int]
    """Instead of steps: the timesteps themselves, falling; not every sampler takes them."""
    guidance_scale: float
    guidance_rescale: float
    seed: int
    """Of the first picture; picture i has seed + i."""
    num_images: int
    width: int
    height: int
    """Left out, both are the image's, or else the base's own."""
    size_conditioning: Sizes
    """What SDXL is told of the picture's size."""
    negative_size_conditioning: Sizes
    """The same for the unconditional row; left out, it is told the same."""
    image: ImageSource
    """A picture to start from: a PNG, JPEG or WebP file as bytes, as a path, or opened in binary mode."""
    strength: float
    """How far from image the picture may go, 0 to 1: the share of the steps that are made."""
    mask: ImageSource
    """Where image is redrawn: a file like image, at least half white there."""
    mask_blur: float
    """Radius of a blur of mask before it is cut at half white, in its own pixels."""
    image_format: ImageFormat
    """latents is a safetensors file of what there is before decoding."""
    quality: int
    """Of jpeg and webp, 1 to 100."""
    omit_parameters: bool
    """Leaves out of the files what they were made with."""
    preview_every: int
    """`stream` tells a Preview after every so many steps of a picture."""
    priority: Priority
    """Part of the machine beside other requests: interactive 4, normal (the default) 1, batch a quarter."""
    request_id: str
    """`generate` under the id of an earlier one gets what that one got or will get, if it asks for the same; left out,
    it is a new one for each; empty, there is none. `stream` is always drawn."""


@dataclass(frozen=True, slots=True)
class AppliedAdapter:
    """One adapter as it was applied. kind: lora or embedding; trigger: of an embedding, else empty; bundled_triggers:
    of the embeddings that came with a LoRA and act."""

    adapter: str
    version: int
    digest: str
    weight: float
    unet: float = 1.0
    text_encoder: float = 1.0
    blocks: Mapping[str, float] = field(default_factory=dict[str, float])
    schedule: tuple[SchedulePoint, ...] = ()
    text_encoder_2: float = 1.0
    kind: str = "lora"
    trigger: str = ""
    bundled_triggers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """Everything a picture depends on: the same values draw the same picture."""

    adapters: tuple[AppliedAdapter, ...]
    negative_adapters: tuple[AppliedAdapter, ...] | None
    """None where the unconditional row had the same."""
    seed: int
    sampler: str
    sigma_schedule: str | None
    steps: int
    timesteps: tuple[int, ...]
    guidance_scale: float
    guidance_rescale: float
    width: int
    height: int
    prompt_syntax: str
    long_prompt: str
    clip_skip: int
    base_digest: str
    server_version: str
    strength: float | None = None
    """None where the picture did not start from an image."""
    image_sha256: str | None = None
    mask_sha256: str | None = None
    mask_blur: float = 0.0
    size_conditioning: Sizes | None = None
    """None where the base is told of no size."""
    negative_size_conditioning: Sizes | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """A finished picture; data is a whole file of the given format."""

    index: int
    seed: int
    format: str
    width: int
    height: int
    data: bytes

    def save(self, path: str | PathLike[str]) -> Path:
        """Writes the file, over what was there, and gives its path."""
        target = Path(path)
        target.write_bytes(self.data)
        return target


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of a request went, in seconds on the server."""

    queue: float
    denoise: float
    decode: float
    total: float


@dataclass(frozen=True, slots=True)
class Generation:
    """All pictures of a request, in the order of their index."""

    images: tuple[Image, ...]
    applied: Applied
    timings: Timings


@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits; position counts the pictures waiting or running before it."""

    position: int


@dataclass(frozen=True, slots=True)
class Started:
    """Adapters and seed are settled."""

    applied: Applied


@dataclass(frozen=True, slots=True)
class Step:
    """One picture made one step: step of total, from 1."""

    image_index: int
    step: int
    total: int


@dataclass(frozen=True, slots=True)
class Preview:
    """What one picture will be, as far as it can be foreseen: a small JPEG file."""

    image_index: int
    step: int
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class ImageReady:
    """One picture is finished."""

    image: Image


@dataclass(frozen=True, slots=True)
class Done:
    """All pictures were sent."""

    timings: Timings


Event = Queued | Started | Step | Preview | ImageReady | Done
