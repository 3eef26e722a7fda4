"""Which base a run trains beside. Reads nothing."""

from typing import Literal

from pydantic import Field

from loramux_train.section import Section

BUILTIN = "builtin"


class BaseSettings(Section):
    """The frozen model."""

    path: str = Field(
        default=BUILTIN,
        min_length=1,
        description="`builtin`, a folder in diffusers layout, a .safetensors checkpoint, or owner/name in Hugging "
        "Face's cache; nothing is downloaded.",
    )
    prediction: Literal["auto", "epsilon", "v_prediction"] = Field(
        default="auto", description="What the UNet predicts; auto: as the base's scheduler says."
    )
