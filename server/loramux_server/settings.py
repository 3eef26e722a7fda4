"""What the operator may set: one frozen value, and the only place in the server that reads the environment.

Every field is also an environment variable, LORAMUX_ and the field's name in capitals.
"""

from pathlib import Path
from typing import Literal

from platformdirs import user_data_path
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

BUILTIN = "builtin"
"""Name of the base that ships with the server."""


class Settings(BaseSettings):
    """All settings with their defaults."""

    model_config = SettingsConfigDict(env_prefix="LORAMUX_", frozen=True, extra="forbid")

    base: str = Field(
        default=BUILTIN,
        description="Base model: 'builtin', a diffusers folder, a .safetensors checkpoint, or a cached hub id.",
    )
    store: Path = Field(
        default_factory=lambda: user_data_path("loramux") / "store", description="Folder of the adapter store."
    )
    quota_bytes: int | None = Field(
        default=None, ge=1, description="Most bytes of adapter files the store takes; unset: what the disk holds."
    )
    upload_idle_seconds: float = Field(
        default=86400.0, gt=0, description="An unfinished upload that nobody goes on with is thrown away after these."
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on, for gRPC and HTTP.")
    port: int = Field(default=50051, ge=0, le=65535, description="gRPC port; 0 picks a free one.")
    metrics_port: int = Field(
        default=9090, ge=0, le=65535, description="HTTP port of /metrics, /livez, /readyz; 0 picks one."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Device of the base; auto takes a GPU.")
    kernels: Literal["auto", "reference", "triton"] = Field(
        default="auto", description="Adapter arithmetic: auto takes Triton kernels on a GPU, plain torch on the CPU."
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads of tensor work; unset: torch decides.")
    deterministic: bool = Field(
        default=False, description="Pictures do not depend on their company in their last bits, at a cost in speed."
    )
    deterministic_rank: Literal[16, 32, 64, 128, 256, 512] = Field(
        default=128, description="Largest total rank of a blend with --deterministic; every blend costs as much."
    )
    max_rows: int | None = Field(
        default=None, ge=2, description="Most rows of one UNet forward; unset: what fits a GPU's memory, 32 on the CPU."
    )
    max_queue: int = Field(default=256, ge=1, description="Most pictures waiting or running.")
    max_side: int = Field(default=1024, ge=64, description="Largest width and height, in pixels.")
    pool_bytes: int = Field(default=2 << 30, ge=1 << 20, description="Bytes of device memory for rank rows.")
    side_bytes: int = Field(
        default=2 << 30,
        ge=0,
        description="Most bytes of device memory for adapters without cheap rank rows: LoKr, full differences.",
    )
    prompt_cache_bytes: int = Field(
        default=64 << 20, ge=0, description="Bytes of device memory for embeddings of prompts; 0 keeps none."
    )
    cross_attention_cache_bytes: int = Field(
        default=256 << 20,
        ge=0,
        description="Bytes of device memory for cross-attention keys and values of pictures in flight; 0 keeps none.",
    )
    drain_seconds: float = Field(default=30.0, ge=0, description="Seconds that running requests get at stop.")
