"""Which layers an adapter changes. Knows no model."""

from typing import Literal

from pydantic import Field

from loramux_train.section import Section

Preset = Literal["attn-qkv", "attn", "attn-ff", "locon"]

ABOUT: dict[Preset, str] = {
    "attn-qkv": "queries, keys and values of self- and cross-attention",
    "attn": "attn-qkv and the attentions' output projections",
    "attn-ff": "attn, feed-forward layers, and projections in and out of the transformers",
    "locon": "attn-ff and the 3x3 convolutions of residual blocks and samplers",
}
BLOCKS = {
    "all": "the whole UNet",
    "article": "the bottleneck, the innermost blocks with attention on either side of it, and the decoder's block of "
    "highest resolution with attention",
    "mid": "the bottleneck",
    "up": "the decoder",
    "down": "the encoder",
}


class TargetSettings(Section):
    """Where the factors go."""

    modules: Preset = Field(default="attn-qkv", description="Kinds of layers: see `loramux train presets`.")
    blocks: str = Field(
        default="all",
        min_length=1,
        description="all, article, mid, up or down; or module paths (`up_blocks.1,mid_block`); or re: and a regular "
        "expression to find in module paths.",
    )
    attention: Literal["both", "self", "cross"] = Field(
        default="both", description="Which attentions; other kinds of layers are as `modules` says."
    )
    text_encoder: bool = Field(default=False, description="Train the text encoders too.")
