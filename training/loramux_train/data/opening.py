"""From settings to batches, in the order that wastes nothing: what is wrong is said before class pictures are drawn.

Takes DataSettings and what the base offers: its VAE and, for class pictures, a function that draws. Gives batches for
training and for validation. Knows no loop.
"""

from dataclasses import dataclass

from loramux_train.data.batches import FolderBatches, Scaling, ValidationBatches
from loramux_train.data.captions import CountTokens
from loramux_train.data.latent_cache import Encode, LatentCache
from loramux_train.data.prior import Draw, draw_missing
from loramux_train.data.survey import Progress, Survey, survey
from loramux_train.data.text_cache import EncodeText, TextCache
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
    vae: Vae,
    draw: Draw | None = None,
    count_tokens: CountTokens | None = None,
    progress: Progress = lambda done, of: None,
) -> TrainingData:
    """Survey, draw what class pictures are missing, and open the batches. DataError with every reason not to start."""
    found = survey(settings, count_tokens, progress)
    found.require()
    if found.lacks_class_pictures and draw is not None:
        draw_missing(settings, draw)
        found = survey(settings, count_tokens, progress)
    folder = None if settings.cache is None else settings.cache / "latents"
    cache = LatentCache(folder, vae.digest, vae.encode, settings)
    return TrainingData(found, FolderBatches(found, cache, vae.scaling), ValidationBatches(found, cache, vae.scaling))


def open_texts(settings: DataSettings, encoder_digest: str, encode: EncodeText) -> TextCache:
    """The cache of frozen text encoders, beside that of latents; in memory if each use has other words."""
    folder = None if settings.cache is None or settings.shuffle else settings.cache / "texts"
    return TextCache(folder, encoder_digest, encode)
