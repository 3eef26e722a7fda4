"""Folders of small pictures for tests of the data side."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from loramux_train.data.batches import FolderBatches, Scaling, ValidationBatches
from loramux_train.data.latent_cache import LatentCache
from loramux_train.data.survey import Survey, survey
from loramux_train.data_settings import DataSettings

SCALING = Scaling(0.5, 0.25)


def picture(path: Path, size: tuple[int, int] = (64, 64), caption: str | None = None, seed: int | None = None) -> Path:
    """A picture of noise, another for each path unless a seed says which, and its caption beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = int.from_bytes(str(path).encode()[-8:], "little") if seed is None else seed
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, "utf-8")
    return path


def settings(*folders: Path, **others: Any) -> DataSettings:
    """For pictures of 64 pixels, without chance in captions unless it is asked for."""
    values: dict[str, Any] = {"resolution": 64, "caption_dropout": 0.0, "batch_size": 3, **others}
    return DataSettings(**{"folders": [str(folder) for folder in folders], **values})


def surveyed(*folders: Path, **others: Any) -> Survey:
    return survey(settings(*folders, **others))


def codes(found: Survey, weight: str) -> set[str]:
    return {note.code for note in found.notes if note.weight == weight}


def line(found: Survey, code: str) -> str:
    """The one note of a code, as it is printed."""
    (note,) = [note for note in found.notes if note.code == code]
    return note.line()


def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """A VAE of one factor, 8: the mean of each block, and a deviation that shows in samples."""
    mean = torch.nn.functional.avg_pool2d(pixels, 8)
    return torch.cat([mean, mean[:, :1]], 1), torch.full_like(mean[:, :1], 0.125).expand(-1, 4, -1, -1)


def batches(found: Survey, folder: Path | None = None) -> FolderBatches:
    return FolderBatches(found, LatentCache(folder, "vae", encode, found.settings), SCALING)


def validation(found: Survey) -> ValidationBatches:
    return ValidationBatches(found, LatentCache(None, "vae", encode, found.settings), SCALING)
