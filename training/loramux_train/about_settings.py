"""What an adapter's file tells people of it. Reads nothing."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from loramux_train.section import Section


class AboutSettings(Section):
    """Words for people; what is empty is left out. The trigger word is `data.trigger`."""

    title: str = Field(default="", description="Title; empty: `output.name`.")
    author: str = Field(default="", description="Who made it.")
    description: str = Field(default="", description="What it is.")
    licence: str = Field(default="", description="Under which licence it may be used.")
    usage_hint: str = Field(default="", description="How it is used.")
    tags: Annotated[tuple[str, ...], Field(strict=False)] = Field(default=(), description="Words to find it by.")
    thumbnail: Annotated[Path | None, Field(strict=False)] = Field(
        default=None, description="A picture of what it does, kept in the file at 256 pixels; unset: none."
    )
