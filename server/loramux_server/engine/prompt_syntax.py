"""The emphasis that people write into prompts: `(more)`, `((more))`, `[less]`, `(word:1.3)`, `BREAK`.

Takes a prompt; gives its text in pieces with weights. Round brackets multiply the weight of what they hold by 1.1,
square ones divide it; a number after a colon, before a closing round bracket, is the factor itself. Brackets nest,
and those that are never closed reach to the end. A backslash makes the bracket after it a character. BREAK, as a word
of its own, ends a chunk of tokens. It knows no tokens and no model.
"""

import re
from dataclasses import dataclass

FACTOR = 1.1

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_MARKS = re.compile(rf"\\[\\()\[\]]|:\s*{_NUMBER}\s*\)|\bBREAK\b|[()\[\]]")


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one weight."""

    text: str
    weight: float


@dataclass(slots=True)
class _Open:
    """A bracket that is not closed yet: its kind and the piece it begins at."""

    kind: str
    first: int


def parse(prompt: str) -> tuple[tuple[Piece, ...], ...]:
    """The pieces of each section between BREAKs, in order; pieces of one weight in a row are one."""
    sections: list[list[Piece]] = [[]]
    open_brackets: list[_Open] = []
    place = 0
    pieces: list[Piece] = []
    for mark in _MARKS.finditer(prompt):
        _add(pieces, prompt[place : mark.start()])
        place = mark.end()
        text = mark[0]
        if text == "BREAK":
            pieces.append(_BREAK)
        elif text in "([":
            open_brackets.append(_Open(text, len(pieces)))
        elif text[0] == "\\":
            _add(pieces, text[1])
        else:
            _close(pieces, open_brackets, text)
    _add(pieces, prompt[place:])
    for bracket in open_brackets:
        _scale(pieces, bracket.first, FACTOR if bracket.kind == "(" else 1 / FACTOR)
    for piece in pieces:
        if piece is _BREAK:
            sections.append([])
        elif sections[-1] and sections[-1][-1].weight == piece.weight:
            sections[-1][-1] = Piece(sections[-1][-1].text + piece.text, piece.weight)
        else:
            sections[-1].append(piece)
    return tuple(tuple(section) for section in sections)


_BREAK = Piece("BREAK", 1.0)


def _add(pieces: list[Piece], text: str) -> None:
    if text:
        pieces.append(Piece(text, 1.0))


def _close(pieces: list[Piece], open_brackets: list[_Open], text: str) -> None:
    """A closing bracket, perhaps with a number; one that closes nothing is a character."""
    kind = "(" if text.endswith(")") else "["
    if not open_brackets or open_brackets[-1].kind != kind:
        _add(pieces, text)
        return
    bracket = open_brackets.pop()
    if text[0] == ":":
        _scale(pieces, bracket.first, float(text[1:-1]))
    else:
        _scale(pieces, bracket.first, FACTOR if kind == "(" else 1 / FACTOR)


def _scale(pieces: list[Piece], first: int, factor: float) -> None:
    for index in range(first, len(pieces)):
        if pieces[index] is not _BREAK:
            pieces[index] = Piece(pieces[index].text, pieces[index].weight * factor)
