"""Where embeddings act in a text: at their triggers, as words of their own.

Takes a text and triggers; gives the text in pieces, with the number of a trigger in each place where it stands. It
knows no tokens, no vectors and no chunks.

A trigger is found as people write it, in upper or lower case and with any white space for its own. It is a word of its
own where no letter, digit or underscore touches a letter, digit or underscore at its ends; `<cat>` needs no space
around it. Of triggers that begin at one place the longest is found.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Trigger:
    """What stands for an embedding in a text, and how many vectors it becomes."""

    text: str
    vectors: int


def split(text: str, triggers: Sequence[str]) -> list[str | int]:
    """The text around triggers, never empty, and the indices of those that stand between; in Unicode's normal form C,
    which tokenizers read, where there are triggers to look for."""
    if not triggers:
        return [text] if text else []
    text = unicodedata.normalize("NFC", text)
    pieces: list[str | int] = []
    place = 0
    pattern, numbers = _pattern(tuple(triggers))
    for found in pattern.finditer(text):
        pieces += [text[place : found.start()], numbers[(found.lastindex or 0) - 1]]
        place = found.end()
    pieces.append(text[place:])
    return [piece for piece in pieces if piece != ""]


@lru_cache(maxsize=64)
def _pattern(triggers: tuple[str, ...]) -> tuple[re.Pattern[str], list[int]]:
    """One group a trigger, the longest first, and the index of each."""
    numbers = sorted(range(len(triggers)), key=lambda number: -len(triggers[number]))
    return re.compile("|".join(f"({_word(triggers[number])})" for number in numbers), re.IGNORECASE), numbers


def _word(trigger: str) -> str:
    inside = r"\s+".join(map(re.escape, trigger.split()))
    before = r"(?<!\w)" if re.match(r"\w", trigger) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", trigger) else ""
    return f"{before}{inside}{after}"
