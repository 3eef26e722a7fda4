"""Sample pictures of a run as one growing contact sheet: a row a step, a column a prompt.

Takes pictures; gives a PNG that is whole at any time. A run that is resumed finds its rows in the PNG again. Knows no
models.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from loramux_train.output.atomic import write_whole

__all__ = ["Row", "SampleSheet", "shown"]

_KEY = "loramux.samples"
_GAP = 4  # pixels between pictures
_LARGEST = 512  # pixels: larger pictures are shown smaller
_MOST_SHOWN = 24  # rows of a report
_PAPER, _INK = "white", "#222222"


@dataclass(frozen=True, slots=True)
class Row:
    """The pictures of a step, as shown."""

    step: int
    images: tuple[Image.Image, ...]


class SampleSheet:
    """The sheet of a run at `path`; labels: of the columns, such as the prompts; size: (width, height) of its pictures
    as shown, None for those there are.

    An earlier sheet at that path is gone on with where its columns and sizes are the same, else begun anew.
    """

    def __init__(self, path: Path, labels: Sequence[str], size: tuple[int, int] | None = None) -> None:
        self.path = path
        self.labels = tuple(labels)
        found = _read(path, self.labels)
        self.rows: tuple[Row, ...] = (
            found if size is None or all(row.images[0].size == size for row in found[:1]) else ()
        )

    def add(self, step: int, images: Sequence[Image.Image]) -> None:
        """Add a row and write the sheet; rows of this step and later ones, of a part of the run that is done again, go.

        Raises:
            ValueError: not a picture a column, or not all of the size of those above.
        """
        if len(images) != len(self.labels):
            raise ValueError(f"step {step}: got {len(images)} pictures, expected {len(self.labels)}, one a column")
        row = Row(step, tuple(shown(image) for image in images))
        kept = tuple(earlier for earlier in self.rows if earlier.step < step)
        sizes = {image.size for each in (*kept[:1], row) for image in each.images}
        if len(sizes) > 1:
            raise ValueError(f"step {step}: pictures of one size expected, got {sorted(sizes)}")
        self.rows = (*kept, row)
        self._write()

    def drop_after(self, step: int) -> None:
        """Rows of later steps go, which a run that goes on from this one draws anew."""
        kept = tuple(row for row in self.rows if row.step <= step)
        if kept == self.rows:
            return
        self.rows = kept
        if kept:
            self._write()
        else:
            self.path.unlink(missing_ok=True)

    def image(self) -> Image.Image | None:
        """For a report: the first row and the last and some between; None before there are any."""
        if not self.rows:
            return None
        count, most = len(self.rows), min(len(self.rows), _MOST_SHOWN)
        chosen = [round(at * (count - 1) / max(1, most - 1)) for at in range(most)]
        return _draw([self.rows[at] for at in chosen], self.labels)

    def _write(self) -> None:
        sheet = _draw(self.rows, self.labels)
        width, height = self.rows[0].images[0].size
        notes = PngImagePlugin.PngInfo()
        said = {"labels": self.labels, "steps": [row.step for row in self.rows], "width": width, "height": height}
        notes.add_itxt(_KEY, json.dumps(said))
        file = io.BytesIO()
        sheet.save(file, "PNG", pnginfo=notes)
        write_whole(self.path, [file.getbuffer()])


def shown(image: Image.Image) -> Image.Image:
    """As it stands in a sheet."""
    copy = image.convert("RGB")
    copy.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    return copy


@dataclass(frozen=True, slots=True)
class _Grid:
    """Where what lies, in pixels, for pictures of a size."""

    width: int
    height: int
    columns: int

    @property
    def text(self) -> int:
        """Height of letters: small beside large pictures, legible beside small ones."""
        return max(11, self.width // 24)

    @property
    def left(self) -> int:
        """Room for the steps."""
        return 6 * self.text

    @property
    def top(self) -> int:
        """Room for three lines of a label."""
        return 5 * self.text

    def size(self, rows: int) -> tuple[int, int]:
        return self.left + self.columns * (self.width + _GAP), self.top + rows * (self.height + _GAP)

    def corner(self, row: int, column: int) -> tuple[int, int]:
        return self.left + column * (self.width + _GAP), self.top + row * (self.height + _GAP)


def _draw(rows: Sequence[Row], labels: Sequence[str]) -> Image.Image:
    grid = _Grid(*rows[0].images[0].size, len(labels))
    sheet = Image.new("RGB", grid.size(len(rows)), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(grid.text)
    for column, label in enumerate(labels):
        lines = "\n".join(_lines(label, grid.width, font))
        pen.multiline_text((grid.corner(0, column)[0], _GAP), lines, _INK, font)
    for at, row in enumerate(rows):
        pen.text((_GAP, grid.corner(at, 0)[1]), f"step\n{row.step}", _INK, font)
        for column, image in enumerate(row.images):
            sheet.paste(image, grid.corner(at, column))
    return sheet


def _lines(label: str, width: int, font: Any) -> list[str]:
    """As many words as three lines hold."""
    lines, rest = [""], " ".join(label.split()).split(" ")
    for word in rest:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    shown = lines[:3]
    if len(lines) > 3:
        shown[-1] += " ..."
    return [_cut(line, width, font) for line in shown]


def _cut(line: str, width: int, font: Any) -> str:
    while line and font.getlength(line) > width:
        line = line[:-1]
    return line


def _read(path: Path, labels: tuple[str, ...]) -> tuple[Row, ...]:
    """The rows of an earlier sheet with these columns; none where it is another's."""
    if not path.is_file():
        return ()
    try:
        with path.open("rb") as file:
            sheet = PngImagePlugin.PngImageFile(file)  # not Image.open: a long sheet is no decompression bomb
            sheet.load()
            said = json.loads(sheet.text[_KEY])
        return tuple(_rows(sheet, said)) if tuple(said["labels"]) == labels else ()
    except (OSError, SyntaxError, KeyError, TypeError, ValueError):  # Pillow calls a file that is no PNG a SyntaxError
        return ()


def _rows(sheet: Image.Image, said: dict[str, Any]) -> Iterator[Row]:
    grid = _Grid(said["width"], said["height"], len(said["labels"]))
    for at, step in enumerate(said["steps"]):
        corners = [grid.corner(at, column) for column in range(grid.columns)]
        yield Row(step, tuple(sheet.crop((x, y, x + grid.width, y + grid.height)).copy() for x, y in corners))
