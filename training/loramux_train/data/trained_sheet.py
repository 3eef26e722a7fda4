"""A sheet of what is trained on: every picture as the first epoch shows it, cropped and mirrored, its caption below.

Takes a survey; gives one image. Captions are those of the first use in the first epoch. Knows no terminal.
"""

from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, ImageOps

from loramux_train.data.batches import caption_at, crop_of_use, is_mirrored
from loramux_train.data.order import Order, Use
from loramux_train.data.pixels import Trained, trained
from loramux_train.data.survey import Survey
from loramux_train.data_settings import DataSettings

MOST = 200  # pictures of a sheet
TILE = 192  # pixels of the longer edge of a picture
LINES = 4  # of caption
COLUMNS = 8
_GAP, _LINE, _FONT = 8, 14, 12
_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf")

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


@dataclass(frozen=True, slots=True)
class _Tile:
    picture: Image.Image
    lines: tuple[str, ...]


def trained_sheet(survey: Survey) -> Image.Image:
    """Row by row, in the order of names, class pictures last; masked parts are pale, as far as they count less."""
    batches = Order(survey.pictures, survey.settings).epoch(0)
    uses = {use.picture: use for batch in batches for use in batch if use.repeat == 0}
    shown = [uses[picture] for picture in survey.pictures if picture in uses]
    font = _font()
    tiles = [_tile(use, survey, font) for use in shown[:MOST]]
    columns = min(COLUMNS, len(tiles))
    across, down = TILE + _GAP, TILE + _GAP + _LINE * (LINES + 1)
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * across + _GAP, rows * down + _GAP + _LINE * 2), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP), _head(len(tiles), len(survey.pictures)), font=font, fill="black")
    for index, tile in enumerate(tiles):
        left, top = index % columns * across + _GAP, index // columns * down + _GAP + _LINE * 2
        sheet.paste(tile.picture, (left + (TILE - tile.picture.width) // 2, top + TILE - tile.picture.height))
        for row, line in enumerate(tile.lines):
            pen.text((left, top + TILE + 2 + row * _LINE), line, font=font, fill="black" if row else "gray")
    return sheet


def _font() -> Font:
    """A font of the system that has the letters of most languages, or Pillow's own, which has those of English."""
    for name in _FONTS:
        try:
            return ImageFont.truetype(name, _FONT)
        except OSError:
            continue
    return ImageFont.load_default(_FONT)


def _head(shown: int, of: int) -> str:
    return f"{shown} of {of} pictures, as the first epoch shows them"


def _tile(use: Use, survey: Survey, font: Font) -> _Tile:
    settings, picture = survey.settings, use.picture
    cut, mirrored = crop_of_use(use, settings), is_mirrored(use, settings)
    small = _paled(trained(picture, cut, mirrored, settings), settings.unmasked_weight)
    small = ImageOps.contain(small, (TILE, TILE), Image.Resampling.LANCZOS)
    about = f"{picture.source.path.name} {picture.bucket[0]}x{picture.bucket[1]} {picture.source.repeats}x"
    about += " class" if picture.source.prior else ""
    about += " mirrored" if mirrored else ""
    caption = caption_at(use, settings) or _why_none(use, settings)
    about, caption = (_written(text, font) for text in (about, caption))
    return _Tile(small, (wrapped(about, font)[0], *wrapped(caption, font)))


def _why_none(use: Use, settings: DataSettings) -> str:
    kept = settings.model_copy(update={"caption_dropout": 0.0})
    return "(caption dropped in this use)" if caption_at(use, kept) else "(no caption)"


def _written(text: str, font: Font) -> str:
    """The text, with numbers for letters that Pillow's own font draws as boxes."""
    own = not isinstance(font, ImageFont.FreeTypeFont) or font.getname()[0] == "Aileron"
    return text.encode("ascii", "backslashreplace").decode() if own else text


def _paled(shown: Trained, unmasked: float) -> Image.Image:
    if shown.mask is None:
        return shown.rgb
    white = Image.new("RGB", shown.rgb.size, "white")
    counted = shown.mask.point([round(255 * (unmasked + (1 - unmasked) * level / 255)) for level in range(256)])
    return Image.composite(shown.rgb, white, counted)


def _cut_short(line: str, font: Font) -> str:
    while font.getlength(line + "…") > TILE:
        line = line[:-1]
    return line + "…"


def wrapped(text: str, font: Font) -> list[str]:
    """The text in lines as wide as a tile; what the lines do not hold ends in an ellipsis."""
    lines: list[str] = []
    line = ""
    for letter in "".join(character if character.isprintable() else " " for character in text):
        if font.getlength(line + letter) > TILE:
            space = line.rfind(" ")
            head, line = (line[:space], line[space + 1 :]) if space > 0 else (line, "")
            lines.append(head)
            if len(lines) == LINES:
                return [*lines[:-1], _cut_short(head, font)]
        line += letter
    return [*lines, line]
