"""Which pictures are drawn while a run goes on, to see it learn. Draws nothing."""

from typing import Annotated

from pydantic import Field

from loramux_train.section import Section

Edge = Annotated[int, Field(ge=8, multiple_of=8)]


class SamplesSettings(Section):
    """Sample pictures, and how class pictures are drawn."""

    every: int = Field(
        default=250, ge=0, description="Steps between rows of samples.png, the first before step 1; 0 draws none."
    )
    prompts: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="One picture each; none: the captions of four pictures."
    )
    negative: str = Field(default="", description="The negative prompt.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of the first prompt's picture; the next has the next.")
    steps: int = Field(default=20, ge=1, description="Denoising steps, with the base's own scheduler.")
    guidance: float | None = Field(
        default=None, ge=0, description="Guidance scale; unset: 7.5, with SDXL 5, on the built-in base 3."
    )
    width: Edge | None = Field(default=None, description="Pixels; unset: `data.resolution`.")
    height: Edge | None = Field(default=None, description="Pixels; unset: `data.resolution`.")
