"""What an adapter is made of: ranks, scale, kind and what is dropped while it learns. Knows no model."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from loramux_train.section import Section

Rank = Annotated[int, Field(ge=1, le=4096)]
Share = Annotated[float, Field(ge=0, lt=1)]
Group = Literal["self_attention", "cross_attention", "feed_forward", "convolution", "text_encoder"]

PRESETS = {"small": 4, "medium": 8, "large": 16}
"""Ranks by name: for a palette or a simple style, for most styles and subjects, for what has many details."""


class Ranks(Section):
    """Ranks by group of layers, where they differ from the rank."""

    self_attention: Rank | None = Field(default=None, description="Self-attention; unset: `adapter.rank`.")
    cross_attention: Rank | None = Field(default=None, description="Cross-attention; unset: `adapter.rank`.")
    feed_forward: Rank | None = Field(
        default=None, description="Feed-forward layers and projections; unset: `adapter.rank`."
    )
    convolution: Rank | None = Field(default=None, description="3x3 convolutions; unset: `adapter.rank`.")
    text_encoder: Rank | None = Field(default=None, description="Text encoders; unset: `adapter.rank`.")


class AdapterSettings(Section):
    """The factors A and B of dW = scale B A."""

    rank: Rank | Literal["small", "medium", "large"] = Field(
        default="small", description="Rows of A: a number, or small (4), medium (8), large (16)."
    )
    alpha: float | None = Field(
        default=None, gt=0, description="The scale is alpha / rank; unset: each layer's rank, so that the scale is 1."
    )
    ranks: Ranks = Ranks()
    rslora: bool = Field(default=False, description="Scale by alpha / sqrt(rank) instead (rsLoRA).")
    dora: bool = Field(default=False, description="Learn the length of each output's weights apart (DoRA).")
    dropout: Share = Field(default=0.0, description="Share of a layer's inputs that A does not see.")
    rank_dropout: Share = Field(default=0.0, description="Share of a layer's rank rows left out, by picture.")
    module_dropout: Share = Field(default=0.0, description="Share of the layers left out of a forward.")
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Decay of a moving average of the factors, which is what is written; unset: none.",
    )

    @model_validator(mode="after")
    def _drops_fit(self) -> Self:
        if self.dora and (self.rank_dropout or self.module_dropout):
            raise ValueError(
                "dora measures B A as a whole, which rank_dropout and module_dropout take apart: expected 0"
            )
        return self

    def rank_of(self, group: Group) -> int:
        """The rank of a group's layers."""
        own: int | None = getattr(self.ranks, group)
        if own is not None:
            return own
        return PRESETS[self.rank] if isinstance(self.rank, str) else self.rank
