"""The built-in adapters' pictures as anybody's: folders of PNG files, each with its caption beside it.

Takes rendered icons; gives folders that `loramux train` takes. Knows no training and no model.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from loramux_train.builtin.adapters import sepia
from loramux_train.builtin.concepts import (
    BACKGROUNDS,
    CONCEPTS,
    FLAT,
    GLOSSY,
    INK,
    NOTO,
    SEEN,
    WHITE,
    Concept,
    caption,
)
from loramux_train.builtin.icons import Rgba, load_icons
from loramux_train.builtin.pictures import place, random_placement, to_array, to_image
from loramux_train.builtin.subject import TRIGGER, zib_pictures

FEW = SEEN[::4] + SEEN[1::4] + SEEN[2::4][:10]
"""32 concepts of those that styles may see, of every kind: what a user might have drawn. The other 11 are for choosing
settings, so that no held-out concept is."""

CHOOSING = tuple(concept for concept in SEEN if concept not in FEW)

Treat = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True, slots=True)
class Placed:
    """How often a concept is shown: centred on white once, then so often moved and resized on each ground."""

    on_white: int = 0
    on_colours: int = 0


def write_folders(icons: Path, folder: Path) -> None:
    """`folder/NAME` for everything that a recipe in `training/runs` names; what was there is replaced."""
    flat, ink = load_icons(icons, FLAT), load_icons(icons, INK)
    often = Placed(15, 2)
    zib = {f"{TRIGGER}-{index}": picture for index, picture in enumerate(zib_pictures())}
    poses = [Concept(TRIGGER, pose) for pose in zib]
    shutil.rmtree(folder, ignore_errors=True)
    _write(folder / "ink", ink, SEEN, often)
    _write(folder / "glossy", load_icons(icons, GLOSSY), SEEN, often)
    _write(folder / "sepia", flat, SEEN, often, _sepia)
    _write(folder / "noto", load_icons(icons, NOTO), CONCEPTS, often)
    _write(folder / "zib", zib, poses, Placed(19, 3))
    _write(folder / "things", flat, CONCEPTS, Placed(2, 1))
    _write(folder / "ink-32", ink, FEW, Placed())
    _write(folder / "zib-6", zib, poses, Placed())


def _write(
    folder: Path, icons: Mapping[str, Rgba], concepts: Sequence[Concept], placed: Placed, treat: Treat | None = None
) -> None:
    folder.mkdir(parents=True)
    for concept in concepts:
        for index, (picture, words) in enumerate(_shown(icons[concept.icon], concept, placed)):
            file = folder / f"{concept.icon}-{index:02}.png"
            (picture if treat is None else treat(picture)).save(file)
            file.with_suffix(".txt").write_text(words + "\n")


def _shown(icon: Rgba, concept: Concept, placed: Placed) -> Iterator[tuple[Image.Image, str]]:
    yield place(icon, WHITE), caption(concept)
    random = np.random.default_rng([*concept.icon.encode()])
    grounds: list[str | None] = [None] * placed.on_white + [*BACKGROUNDS] * placed.on_colours
    for ground in grounds:
        colour = BACKGROUNDS[ground] if ground else WHITE
        yield place(icon, colour, random_placement(random, mirror=False)), caption(concept, ground)


def _sepia(picture: Image.Image) -> Image.Image:
    return to_image(sepia(torch.from_numpy(to_array(picture))).numpy())
