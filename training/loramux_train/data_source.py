"""The data of a run from its folders: surveyed, encoded by the base's VAE, in batches.

Takes settings and a base's outline; gives what the loop takes. Joins the data side and the base, and knows no loop.
"""

import torch
from tqdm import tqdm

from loramux_train import base
from loramux_train.config import Config
from loramux_train.data.batches import FolderBatches, Scaling, ValidationBatches
from loramux_train.data.latent_cache import LatentCache, encoder_of, module_digest
from loramux_train.data.survey import Survey, survey
from loramux_train.errors import BadSetting
from loramux_train.outline import Outline
from loramux_train.session import Data


def open_folders(config: Config, outline: Outline, device: torch.device) -> Data:
    """Every picture is read, and encoded once unless the cache has it.

    Raises:
        DataError: where no run may start; with every reason.
        BadBase: where the VAE cannot be read.
        BadSetting: where there are fewer class pictures than the settings ask for.
    """
    found = survey(config.data)
    found.require()
    _check_class_pictures(config, found)
    vae = base.load_vae(outline, torch.float32, device)  # SDXL's overflows in fp16
    folder = None if config.data.cache is None else config.data.cache / "latents"
    cache = LatentCache(folder, module_digest(vae), encoder_of(vae), config.data)
    scaling = Scaling(vae.config.scaling_factor, vae.config.shift_factor or 0.0)
    batches, held_out = FolderBatches(found, cache, scaling), ValidationBatches(found, cache, scaling)
    with tqdm(desc="encoding pictures", unit="picture", dynamic_ncols=True, leave=False) as bar:
        for _ in batches.fill():
            bar.update()
        for position in range(len(held_out)):
            bar.update(len(held_out.batch(position).latents))
    if (
        config.data.crop == "centre"
    ):  # every later use is in the cache, so that the device has better use for its memory
        vae.to("cpu")
    return Data(batches, held_out)


def _check_class_pictures(config: Config, found: Survey) -> None:
    prior, here = config.data.prior, sum(picture.source.prior for picture in found.pictures)
    if prior is not None and here < prior.count:
        raise BadSetting(
            f"data.prior.count is {prior.count}, but {prior.folder} holds {here} class pictures; add some, or lower it"
        )
