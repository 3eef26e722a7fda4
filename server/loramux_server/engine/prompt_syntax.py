"""The emphasis that people write into prompts: `(more)`, `((more))`, `[less]`, `(word:1.3)`, `BREAK`.

Takes a prompt; gives its text in pieces with weights. Round brackets multiply the weight of what they hold by 1.1,
square ones divide it; a number after a colon, before a closing round bracket, is the factor itself. Brackets nest,
and those that are never closed reach to the end. A backslash makes the bracket after it a character. BREAK, as a word
of its own, ends a chunk of tokens. It knows no tokens and no model.
"""

import re
from dataclasses import dataclass

FACTOR = 1.1

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"  # each digit is in one place: no pattern that tries two
_MARKS = re.compile(rf"\\[\\()\[\]]|:\s*{_NUMBER}\s*\)|\bBREAK\b|[()\[\]]")


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one weight."""

    text: str
    weight: float


@dataclass(slots=True)
class _Bracket:
    """One that opens: its kind, and what it multiplies by, which its end may say."""

    kind: str
    factor: float


@dataclass(frozen=True, slots=True)
class _Sign:
    """What stands between texts beside brackets that open."""

    name: str


_BREAK, _END = _Sign("BREAK"), _Sign("end of a bracket")


def parse(prompt: str) -> tuple[tuple[Piece, ...], ...]:
    """The pieces of each section between BREAKs, in order; pieces of one weight in a row are one."""
    sections: list[list[Piece]] = [[]]
    weights = [1.0]
    for part in _parts(prompt):
        if isinstance(part, _Bracket):
            weights.append(weights[-1] * part.factor)
        elif part is _END:
            weights.pop()
        elif isinstance(part, _Sign):
            sections.append([])
        elif sections[-1] and sections[-1][-1].weight == weights[-1]:
            sections[-1][-1] = Piece(sections[-1][-1].text + part, weights[-1])
        else:
            sections[-1].append(Piece(part, weights[-1]))
    return tuple(tuple(section) for section in sections)


def _parts(prompt: str) -> list[str | _Bracket | _Sign]:
    """Texts, never empty, and what stands between them. Every bracket knows its factor; those without an end have none
    here either."""
    parts: list[str | _Bracket | _Sign] = []
    still_open: list[_Bracket] = []
    place = 0
    for mark in _MARKS.finditer(prompt):
        parts.append(prompt[place : mark.start()])
        place = mark.end()
        text = mark[0]
        if text == "BREAK":
            parts.append(_BREAK)
        elif text in "([":
            still_open.append(_Bracket(text, FACTOR if text == "(" else 1 / FACTOR))
            parts.append(still_open[-1])
        elif text[0] == "\\":
            parts.append(text[1])
        else:
            parts.append(_end(still_open, text))
    return [part for part in (*parts, prompt[place:]) if part]


def _end(still_open: list[_Bracket], text: str) -> _Sign | str:
    """A closing bracket, perhaps with a number; one that closes nothing is a character."""
    if not still_open or still_open[-1].kind != ("(" if text.endswith(")") else "["):
        return text
    bracket = still_open.pop()
    if text[0] == ":":
        bracket.factor = float(text[1:-1])
    return _END
