"""What a run learns from: one frozen value.

Takes what a configuration file or a command line says; gives checked settings or pydantic's ValidationError, which
names field, value and what was expected. A word is never taken for a number or a truth value. Reads no file.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Place = Annotated[Path, Field(strict=False)]
Level = Annotated[int, Field(ge=0, le=255)]

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


class FolderSettings(BaseModel):
    """A folder of pictures, with all folders in it."""

    model_config = _STRICT

    path: Place = Field(description="The folder.")
    repeats: int | None = Field(
        default=None, ge=1, description="Uses of each picture in an epoch; unset: N of a folder N_name, else 1."
    )
    caption: str | None = Field(
        default=None,
        description="Caption of pictures that have none, as DreamBooth's prompt; unset: name of a folder N_name.",
    )


class PriorSettings(BaseModel):
    """Pictures of the class that the subject belongs to, which keep the base's idea of the class (DreamBooth)."""

    model_config = _STRICT

    folder: Place = Field(description="The class pictures; those that are missing are drawn into it.")
    prompt: str = Field(min_length=1, description="Caption of class pictures that have none; what missing ones show.")
    count: int = Field(default=0, ge=0, description="Class pictures to have before the run starts; 0 draws none.")
    weight: float = Field(default=1.0, ge=0, description="Weight of a class picture's loss; other pictures weigh 1.")


class DataSettings(BaseModel):
    """Everything that decides which pictures, crops and captions a run sees, and in what order."""

    model_config = _STRICT

    folders: Annotated[tuple[FolderSettings, ...], Field(strict=False)] = Field(
        min_length=1, description="Where the pictures are: paths, or tables of path, repeats and caption."
    )
    resolution: int = Field(
        default=512, ge=8, description="Pixels; a picture is brought to at most the area of a square of this edge."
    )
    buckets: bool = Field(
        default=True, description="Keep the shape of pictures as far as the step allows; false: crop all to squares."
    )
    bucket_min: int | None = Field(default=None, ge=8, description="Shortest edge, pixels; unset: half the resolution.")
    bucket_max: int | None = Field(default=None, ge=8, description="Longest edge, pixels; unset: twice the resolution.")
    bucket_step: int | None = Field(
        default=None,
        ge=8,
        description="Edges are multiples of this, pixels; unset: an eighth of the resolution, at most 64.",
    )
    upscale: bool = Field(
        default=True, description="Enlarge pictures smaller than the resolution; false: they keep their size."
    )
    crop: Literal["centre", "random"] = Field(
        default="centre",
        description="What is kept of a picture that does not fit its bucket; random: another each use.",
    )
    flip: bool = Field(default=False, description="Mirror each use left to right at even odds.")
    ground: Annotated[tuple[Level, Level, Level], Field(strict=False)] = Field(
        default=(255, 255, 255), description="Red, green and blue, 0-255, under transparent parts."
    )
    caption_extensions: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(".txt", ".caption"),
        min_length=1,
        description="Endings of caption files; the first there is is read.",
    )
    caption_column: str = Field(
        default="text", min_length=1, description="Column of captions in metadata.jsonl and .csv."
    )
    caption_lines: Literal["one", "each"] = Field(
        default="one",
        description="one: a file is one caption; each: every line is one, a random one for each use.",
    )
    trigger: str | None = Field(
        default=None, min_length=1, description="Word put for [trigger], and before captions that lack it."
    )
    templates: Literal["none", "object", "style"] = Field(
        default="none",
        description="What pictures without captions get: one of many short sentences about the trigger, another for "
        "each use, as of a thing or of a style.",
    )
    shuffle: bool = Field(default=False, description="Shuffle the tags of a caption, anew at each use.")
    keep_tags: int = Field(default=0, ge=0, description="Tags that stay in front when shuffled.")
    separator: str = Field(default=",", min_length=1, description="What stands between tags.")
    caption_dropout: float = Field(default=0.05, ge=0, le=1, description="Share of uses with an empty caption.")
    prior: PriorSettings | None = Field(default=None, description="Class pictures; unset: none.")
    masks: Literal["none", "files", "alpha"] = Field(
        default="none",
        description="files: NAME-masklabel.png, or files of the same names in a folder mask; alpha: opacity.",
    )
    unmasked_weight: float = Field(default=0.1, ge=0, le=1, description="Weight of the loss where a mask is black.")
    batch_size: int = Field(default=4, ge=1, description="Pictures of a batch; the last of a bucket may have fewer.")
    validation_share: float | None = Field(
        default=None,
        ge=0,
        le=0.5,
        description="Share of the pictures kept out of training, to measure the loss on; unset: a tenth of 40 or more, "
        "else none.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Of order, crops, flips, shuffling, dropout, validation.")
    skip_broken: bool = Field(default=False, description="Go on without pictures that cannot be read.")
    cache: Annotated[Path | None, Field(strict=False)] = Field(
        default=None, description="Folder for latents and text embeddings; unset: kept in memory."
    )
    cache_dtype: Literal["fp32", "fp16"] = Field(default="fp32", description="Numbers of cached latents.")

    @field_validator("folders", mode="before")
    @classmethod
    def _paths_alone(cls, value: object) -> object:
        if not isinstance(value, list | tuple):
            return value
        return [{"path": entry} if isinstance(entry, str | Path) else entry for entry in value]

    @field_validator("caption_extensions")
    @classmethod
    def _with_dots(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [ending for ending in value if not ending.strip(".") or set(", ") & set(ending)]:
            raise ValueError(f'{wrong[0]!r} is no ending, expected such as .txt, several as [".txt", ".tags"]')
        return tuple(f".{ending.lstrip('.').lower()}" for ending in value)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        low, high = self.edges
        if low > high:
            raise ValueError(f"bucket_min is {low}, more than bucket_max, {high}")
        if self.templates != "none" and self.trigger is None:
            raise ValueError(f"templates is {self.templates}, whose sentences are about the trigger: expected one")
        if self.resolution % self.step:
            raise ValueError(f"resolution is {self.resolution}, expected a multiple of bucket_step, {self.step}")
        if self.buckets and not low <= self.resolution <= high:
            raise ValueError(f"resolution is {self.resolution}, expected bucket_min to bucket_max, {low} to {high}")
        return self

    @property
    def step(self) -> int:
        """Pixels of which edges of buckets are multiples: unset, about an eighth of the resolution, at most 64."""
        eighths = range(min(64, self.resolution // 64 * 8), 8, -8)
        return self.bucket_step or next((step for step in eighths if self.resolution % step == 0), 8)

    @property
    def edges(self) -> tuple[int, int]:
        """Shortest and longest edge of a bucket, in pixels."""
        low, high = self.bucket_min or self.resolution // 2, self.bucket_max or self.resolution * 2
        return -(-low // self.step) * self.step, high // self.step * self.step
