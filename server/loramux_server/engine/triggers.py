"""Where embeddings act in a text: at their triggers, as words of their own.

Takes a text and triggers; gives the text in pieces, with the number of a trigger in each place where it stands. It
knows no tokens, no vectors and no chunks.

A trigger is found as people write it, in upper or lower case and with any white space for its own. It is a word of its
own where no letter, digit or underscore touches a letter, digit or underscore at its ends; `<cat>` needs no space
around it. Of triggers that begin at one place the longest is found.
"""

import unicodedata
from collections.abc import Mapping, Sequence
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
    letters, places = _letters(text)
    table = _table(tuple(triggers))
    pieces: list[str | int] = []
    at = place = 0
    while at < len(letters):
        if found := _beginning(letters, at, table):
            pieces += [text[place : places[at]], table.numbers[found]]
            at += len(found)
            place = places[at]
        else:
            at += 1
    pieces.append(text[place:])
    return [piece for piece in pieces if piece != ""]


@dataclass(frozen=True, slots=True)
class _Table:
    """Indices of triggers by their letters, and how many letters they have, the most first.

    No pattern: a blend may bring two thousand triggers, each of which it would try at each letter."""

    numbers: Mapping[str, int]
    lengths: Sequence[int]


@lru_cache(maxsize=64)
def _table(triggers: tuple[str, ...]) -> _Table:
    numbers: dict[str, int] = {}
    for number, trigger in enumerate(triggers):
        numbers.setdefault(_letters(trigger)[0], number)
    return _Table(numbers, sorted({len(letters) for letters in numbers}, reverse=True))


def _letters(text: str) -> tuple[str, list[int]]:
    """The text with one space for any white space and one letter for upper and lower case, and where each of its
    letters and its end are in the text."""
    places = [at for at, char in enumerate(text) if not (char.isspace() and text[at - 1 : at].isspace())]
    return "".join(" " if text[at].isspace() else _alike(text[at]) for at in places), [*places, len(text)]


def _alike(char: str) -> str:
    """One character for one: what would become two stays as it is."""
    folded, lower = char.casefold(), char.lower()
    return folded if len(folded) == 1 else lower if len(lower) == 1 else char


def _beginning(letters: str, at: int, table: _Table) -> str:
    """The longest trigger that begins at a letter, if any does."""
    if at and _in_word(letters[at]) and _in_word(letters[at - 1]):
        return ""
    for length in table.lengths:
        found, after = letters[at : at + length], letters[at + length : at + length + 1]
        if found in table.numbers and len(found) == length and not (_in_word(found[-1]) and _in_word(after)):
            return found
    return ""


def _in_word(char: str) -> bool:
    return char.isalnum() or char == "_"
