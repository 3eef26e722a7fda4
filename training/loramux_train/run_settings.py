"""How long a run is, how it computes, and when it saves and validates. Knows no model."""

from typing import Literal

from pydantic import Field

from loramux_train.section import Section


class RunSettings(Section):
    """The run."""

    steps: int = Field(default=1000, ge=1, description="Updates of the factors.")
    accumulation: int = Field(default=1, ge=1, description="Batches whose gradients make one update.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="Of the base and the forward; factors are fp32. auto: bf16 on GPUs that have it, else fp32.",
    )
    device: Literal["auto", "cpu"] = Field(default="auto", description="auto: a GPU, if there is one.")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; unset: as PyTorch chooses.")
    gradient_checkpointing: bool = Field(
        default=False, description="Compute parts of the forward twice: less memory, more time."
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of the factors' start, noise, timesteps and dropout.")
    save_every: int = Field(default=250, ge=1, description="Steps between checkpoints; the last step is always one.")
    keep: int = Field(default=4, ge=1, description="Checkpoints kept, the newest.")
    validate_every: int = Field(
        default=250, ge=1, description="Steps between losses over held-out pictures (`data.validation_share`)."
    )
    validation_draws: int = Field(default=4, ge=1, description="Fixed noises and timesteps of each held-out picture.")
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Validations without a new best after which the run ends early; unset: it does not.",
    )
