"""New words that a base learns (textual inversion), alone or with an adapter (pivotal tuning). Knows no model."""

import re
import unicodedata
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from loramux_train.section import Section

ROOM = 75
"""Tokens of a text encoder's 77 that are not its start and end."""

_NOT_IN_FILES = re.compile(r"[^\w-]+")  # no dots: web interfaces cut a bundled embedding's name at the first


class NewToken(Section):
    """A word and the vectors that stand for it."""

    word: str = Field(min_length=1, max_length=64, description="As captions and prompts write it, such as <zib>.")
    vectors: int = Field(default=1, ge=1, le=ROOM, description="Each takes the place of one of 75 tokens.")
    start: str | None = Field(
        default=None, min_length=1, description="Words whose vectors it starts from; unset: random ones."
    )

    @field_validator("word")
    @classmethod
    def _as_prompts_are_read(cls, word: str) -> str:
        word = unicodedata.normalize("NFC", word)
        if word != " ".join(word.split()) or not word.isprintable():
            raise ValueError("expected a word without white space around it, or several with single spaces between")
        if not re.search(r"[^\W_]", word):
            raise ValueError("expected at least one letter or digit: its file is called by them")
        return word

    @property
    def file_name(self) -> str:
        """What its file is called, without ending: web interfaces take it for the word."""
        return _NOT_IN_FILES.sub("_", self.word).strip("_")


class TokenSettings(Section):
    """The new words, and how their vectors learn. Weight decay never acts on them."""

    new: Annotated[tuple[NewToken, ...], Field(strict=False)] = Field(
        default=(),
        description="New words: each a word, or a table of word, vectors (1) and start, words whose vectors it starts "
        "from; without, they are random, as far spread as the base's own.",
    )
    alone: bool = Field(default=False, description="Train the new words alone, and no adapter (textual inversion).")
    rate: float | None = Field(
        default=None, gt=0, description="Peak learning rate of the vectors; unset: 5e-4, 5e-3 on the built-in base, "
        "with prodigy the rate.",
    )  # fmt: skip
    stop: float = Field(
        default=1.0, gt=0, le=1, description="Share of the steps after which the vectors stay as they are."
    )
    norm: Literal["table", "free"] = Field(
        default="table",
        description="table: after each step the vectors' spread is drawn to that of the base's own; free: it is not.",
    )
    bundle: bool = Field(
        default=False, description="Also write NAME-bundle.safetensors: the adapter with the vectors in one file."
    )

    @field_validator("new", mode="before")
    @classmethod
    def _words_alone(cls, value: object) -> object:
        if not isinstance(value, list | tuple):
            return value
        return [{"word": entry} if isinstance(entry, str) else entry for entry in value]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [token.file_name.casefold() for token in self.new]
        twice = next((token.word for token in self.new if names.count(token.file_name.casefold()) > 1), None)
        if twice is not None:
            raise ValueError(f"new has {twice!r} twice, or another word whose file would be called the same")
        if not self.new and (self.alone or self.bundle):
            raise ValueError("alone and bundle need new words: expected some in new")
        if self.alone and self.stop < 1:
            raise ValueError(f"stop is {self.stop} with alone, after which nothing would learn: expected 1")
        if self.alone and self.bundle:
            raise ValueError("bundle puts vectors into an adapter's file, and alone trains no adapter: expected one")
        return self
