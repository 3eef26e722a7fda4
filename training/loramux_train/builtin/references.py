"""Reference sheets: the real pictures results are judged against, kept as small PNG files.

Takes rendered icons; gives one sheet a style, every concept centred on white, and reads it back. The sheets are
committed beside the base, so that judging it needs no download. Knows no models.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from loramux_train.builtin.concepts import CONCEPTS, STYLES, WHITE, Concept, Style
from loramux_train.builtin.icons import load_icons
from loramux_train.builtin.pictures import SIZE, place, to_array
from loramux_train.builtin.sheet import contact_sheet

COLUMNS = 16


def write_references(icons: Path, folder: Path) -> None:
    """`folder/STYLE.png` for every style: 64 pictures in the order of `CONCEPTS`."""
    folder.mkdir(parents=True, exist_ok=True)
    for style in STYLES:
        drawings = load_icons(icons, style)
        pictures = np.stack([to_array(place(drawings[concept.icon], WHITE)) for concept in CONCEPTS])
        sheet = contact_sheet(torch.from_numpy(pictures), COLUMNS)
        sheet.quantize(255, dither=Image.Dither.NONE).save(folder / f"{style.name}.png", optimize=True)


def read_references(folder: Path, style: Style, concepts: tuple[Concept, ...] = CONCEPTS) -> Tensor:
    """[n, 3, 64, 64] in [-1, 1], for the concepts asked for, in their order."""
    with Image.open(folder / f"{style.name}.png") as image:
        sheet = to_array(image.convert("RGB"))
    rows, columns = sheet.shape[1] // SIZE, sheet.shape[2] // SIZE
    tiles = sheet.reshape(3, rows, SIZE, columns, SIZE).transpose(1, 3, 0, 2, 4).reshape(-1, 3, SIZE, SIZE)
    order = [CONCEPTS.index(concept) for concept in concepts]
    return torch.from_numpy(np.ascontiguousarray(tiles[order]))
