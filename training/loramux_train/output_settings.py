"""Where a run writes, and in which form. Writes nothing."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from loramux_train.section import Section


class OutputSettings(Section):
    """Adapter, settings, log and checkpoints lie in one folder."""

    folder: Annotated[Path, Field(strict=False)] = Field(
        default=Path("out/adapter"), description="The run's own folder."
    )
    name: str = Field(
        default="adapter",
        pattern=r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$",
        description="The adapter is NAME.safetensors, in PEFT's form a folder NAME.",
    )
    form: Literal["kohya", "diffusers", "peft"] = Field(
        default="kohya",
        description="kohya: for web interfaces and all others; diffusers: one file; peft: a folder NAME.",
    )
    dtype: Literal["fp16", "bf16", "fp32"] = Field(default="fp16", description="Numbers of the adapter's file.")
    which: Literal["last", "best"] = Field(
        default="last", description="best: the factors of the least validation loss; needs held-out pictures."
    )
    tensorboard: bool = Field(default=False, description="Also log for TensorBoard; needs the package tensorboardX.")
