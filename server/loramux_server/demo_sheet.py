"""A contact sheet: pictures in rows and columns, labelled.

Takes: labels and picture files. Gives: one PIL image. Does not know where the pictures come from.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

TILE = 144
GAP = 10
MARGIN = 28
LABEL = 150
"""Width of the row labels, left of the tiles."""
TITLE = 74
HEADER = 64
MAIN, MINOR, LEADING = 15, 13, 4
"""Sizes of a label's first line and its others, and the space between lines."""

_PAPER, _INK, _GREY, _FRAME = "#fbfbfa", "#1c1c1e", "#77777c", "#e2e2e0"


@dataclass(frozen=True, slots=True)
class SheetRow:
    """A label of several lines, the first of them the main one, and a picture file for each column."""

    label: tuple[str, ...]
    pictures: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """Everything on a sheet. A column's label is like a row's."""

    title: str
    subtitle: str
    columns: tuple[tuple[str, ...], ...]
    rows: tuple[SheetRow, ...]


def sheet_size(columns: int, rows: int) -> tuple[int, int]:
    """Width and height of a sheet, in pixels."""
    width = 2 * MARGIN + LABEL + columns * (TILE + GAP) - GAP
    return width, 2 * MARGIN + TITLE + HEADER + rows * (TILE + GAP) - GAP


def tile_box(column: int, row: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a tile."""
    left = MARGIN + LABEL + column * (TILE + GAP)
    top = MARGIN + TITLE + HEADER + row * (TILE + GAP)
    return left, top, left + TILE, top + TILE


def draw_sheet(sheet: Sheet) -> Image.Image:
    """The sheet, drawn."""
    canvas = Image.new("RGB", sheet_size(len(sheet.columns), len(sheet.rows)), _PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((MARGIN, MARGIN), sheet.title, _INK, _font(24))
    pen.text((MARGIN, MARGIN + 34), sheet.subtitle, _GREY, _font(14))
    for column, label in enumerate(sheet.columns):
        left, top, _, _ = tile_box(column, 0)
        _label(pen, (left, top - 4), label, TILE, up=True)
    for number, row in enumerate(sheet.rows):
        _, top, _, _ = tile_box(0, number)
        _label(pen, (MARGIN, top + 6), row.label, LABEL - GAP)
        for column, picture in enumerate(row.pictures):
            _tile(canvas, pen, picture, tile_box(column, number))
    return canvas


def _tile(canvas: Image.Image, pen: ImageDraw.ImageDraw, picture: bytes, box: tuple[int, int, int, int]) -> None:
    with Image.open(io.BytesIO(picture)) as opened:
        canvas.paste(opened.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS), box)
    left, top, right, bottom = box
    pen.rectangle((left - 1, top - 1, right, bottom), outline=_FRAME)


def _label(
    pen: ImageDraw.ImageDraw, at: tuple[int, int], label: Sequence[str], width: int, *, up: bool = False
) -> None:
    """Draws a label below the point, or with its last line above it."""
    sizes = [MAIN] + [MINOR] * len(label)
    lines = [(part, size) for text, size in zip(label, sizes, strict=False) for part in wrap(pen, text, size, width)]
    left, top = at
    if up:
        top -= sum(size + LEADING for _, size in lines)
    for text, size in lines:
        pen.text((left, top), text, _INK if size == MAIN else _GREY, _font(size))
        top += size + LEADING


def wrap(pen: ImageDraw.ImageDraw, text: str, size: int, width: int) -> list[str]:
    """The text in lines no wider than width, broken between words."""
    lines: list[str] = []
    font = _font(size)
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and pen.textlength(longer, font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
