"""From settings to batches, in the order that wastes nothing: what is wrong is said before class pictures are drawn.

Takes DataSettings and what the base offers: its VAE and, for class pictures, a function that draws. Gives batches for
training and for validation. Knows no loop.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loramux_train.data.batches import FolderBatches, Scaling, ValidationBatches
from loramux_train.data.captions import CountTokens
from loramux_train.data.latent_cache import Encode, LatentCache
from loramux_train.data.prior import Draw, draw_missing
from loramux_train.data.survey import Progress, Survey, survey
from loramux_train.data_settings import DataSettings


@dataclass(frozen=True, slots=True)
class Vae:
    """A VAE as the data side needs it; `encoder_of` and `module_digest` make the first two of diffusers' module."""

    encode: Encode
    digest: str
    scaling: Scaling


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a run learns from, ready."""

    survey: Survey
    batches: FolderBatches
    validation: ValidationBatches


def open_data(
    settings: DataSettings,
    open_vae: Callable[[], Vae],
    draw: Draw | None = None,
    count_tokens: CountTokens | None = None,
    progress: Progress = lambda done, of: None,
    drawn: Progress = lambda done, of: None,
) -> TrainingData:
    """Survey, draw what class pictures are missing, and open the batches. open_vae: asked once nothing is wrong;
    progress: of reading; drawn: of drawing.

    Raises:
        DataError: with every reason not to start.
    """
    found = survey(settings, count_tokens, progress)
    found.require()
    if found.lacks_class_pictures and draw is not None:
        draw_missing(settings, draw, drawn)
        found = survey(settings, count_tokens, progress)
    folder = None if settings.cache is None else settings.cache / "latents"
    vae = open_vae()
    cache = LatentCache(folder, vae.digest, vae.encode, settings)
    return TrainingData(found, FolderBatches(found, cache, vae.scaling), ValidationBatches(found, cache, vae.scaling))


def texts_folder(settings: DataSettings) -> Path | None:
    """Where embeddings of frozen text encoders are kept, beside latents; nowhere if each use has other words."""
    return None if settings.cache is None or settings.shuffle else settings.cache / "texts"
