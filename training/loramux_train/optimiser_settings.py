"""How factors are moved: optimiser, rates and their course. Knows no tensor."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from loramux_train.section import Section

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimiserSettings(Section):
    """The optimiser and its learning rate."""

    name: Literal["adamw", "adamw8bit", "prodigy"] = Field(
        default="adamw", description="adamw8bit needs the package bitsandbytes, prodigy the package prodigyopt."
    )
    rate: float | None = Field(
        default=None, gt=0, description="Peak learning rate; unset: 1e-4, 1e-3 on the built-in base, 1 with prodigy."
    )
    text_encoder_rate: float | None = Field(
        default=None, gt=0, description="Of the text encoders; unset: half the rate, with prodigy the rate."
    )
    text_encoder_stop: int | None = Field(
        default=None, ge=1, description="Step from which the text encoders' factors stay as they are; unset: never."
    )
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled weight decay of the factors.")
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = Field(
        default=(0.9, 0.999), description="Memory of the mean of gradients and of their squares."
    )
    clip: float = Field(default=1.0, ge=0, description="Largest norm of all gradients together; 0: any.")
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="Course of the rate after the warm-up; cosine falls to 0 at the last step."
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="Share of the steps in which the rate rises.")

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if self.name == "prodigy" and self.text_encoder_rate not in (None, self.rate or 1.0):
            raise ValueError(
                f"text_encoder_rate is {self.text_encoder_rate}: prodigy finds one step size for all, expected "
                f"{self.rate or 1.0}, the rate"
            )
        return self
