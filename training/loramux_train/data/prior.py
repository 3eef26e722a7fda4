"""Class pictures that are missing, drawn by the base before its adapter is trained.

Takes a function that draws; gives files in the prior's folder. What is there is never replaced, and a run that was
broken off goes on with what is missing. Knows no pipeline.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from loramux_train.data.files import walk
from loramux_train.data.notes import Notes
from loramux_train.data_settings import DataSettings

Draw = Callable[[Sequence[str], Sequence[int]], Sequence[Image.Image]]
"""n prompts and n seeds to n pictures; the same seed draws the same picture."""


Progress = Callable[[int, int], None]  # pictures drawn, pictures to draw


def draw_missing(
    settings: DataSettings, draw: Draw, progress: Progress = lambda done, of: None, at_once: int = 4
) -> list[Path]:
    """Draw until there are `prior.count` class pictures; their paths. Picture i has the seed `settings.seed` + i."""
    prior = settings.prior
    if prior is None or prior.count == 0:
        return []
    if prior.folder.exists() and not prior.folder.is_dir():
        raise NotADirectoryError(f"prior.folder is {prior.folder}, a file, expected a folder")
    prior.folder.mkdir(parents=True, exist_ok=True)
    places = walk(prior.folder, settings.caption_extensions, Notes())
    here = sum(len(place.pictures) for place in places)
    free = [path for index in range(prior.count) if not (path := prior.folder / _name(index)).exists()]
    missing = free[: max(0, prior.count - here)]
    for start in range(0, len(missing), at_once):
        paths = missing[start : start + at_once]
        seeds = [settings.seed + _index(path) for path in paths]
        pictures = draw([prior.prompt] * len(paths), seeds)
        if len(pictures) != len(paths):
            raise ValueError(f"{len(pictures)} class pictures drawn, expected {len(paths)}")
        for path, picture in zip(paths, pictures, strict=True):
            _write(path, picture)
        progress(start + len(paths), len(missing))
    return missing


def _name(index: int) -> str:
    return f"class-{index:05}.png"


def _index(path: Path) -> int:
    return int(path.stem.removeprefix("class-"))


def _write(path: Path, picture: Image.Image) -> None:
    beside = path.with_name(f".{path.name}.part")
    try:
        picture.convert("RGB").save(beside, format="PNG")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
