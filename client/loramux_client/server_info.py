"""What a server is and can do, and how it feels.

Takes and gives plain values; knows neither protobuf nor gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a request."""

    size_multiple: int
    min_side: int
    max_side: int
    max_steps: int
    max_images: int
    max_blend_entries: int
    max_blend_rank: int
    max_upload_bytes: int
    max_image_bytes: int
    max_image_pixels: int
    max_weight: float
    max_guidance_scale: float
    max_prompt_characters: int
    max_schedule_points: int
    max_seed: int


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a request gets where it says nothing."""

    sampler: str
    steps: int
    guidance_scale: float
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Sampler:
    """What a sampler takes: spreads of noise levels beside the base's own, and whether timesteps may be given."""

    name: str
    sigma_schedules: tuple[str, ...]
    takes_timesteps: bool

    def __str__(self) -> str:
        more = [*self.sigma_schedules, *(("timesteps",) if self.takes_timesteps else ())]
        return f"{self.name} ({', '.join(more)})" if more else self.name


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server is and can do. Adapters with its layout_digest fit its base, and embeddings of its text_widths:
    of token embeddings, by text encoder.

    family: sd1, sd2 or sdxl; distilled: lcm, turbo, or empty.
    """

    server_version: str
    base: str
    base_digest: str
    layout: str
    layout_digest: str
    device: str
    family: str
    distilled: str
    samplers: tuple[Sampler, ...]
    limits: Limits
    defaults: Defaults
    text_widths: Mapping[str, int]
    inpainting: bool
    """Whether every request must bring image and mask."""
    takes_size_conditioning: bool
    image_formats: tuple[str, ...]
    library_versions: Mapping[str, str]
    """Of what pictures depend on, by package."""


class Health(IntEnum):
    """Answers of grpc.health.v1, by their numbers there."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3
