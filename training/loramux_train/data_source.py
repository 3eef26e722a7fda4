"""The data of a run from its folders: surveyed, class pictures drawn, encoded by the base's VAE, in batches.

Takes settings and an outlook; gives what the loop takes. Joins the data side and the base, and knows no loop.
"""

import gc
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from loramux_train import base
from loramux_train.config import Config
from loramux_train.data.batches import FolderBatches, Scaling, ValidationBatches
from loramux_train.data.captions import CountTokens
from loramux_train.data.latent_cache import encoder_of, module_digest
from loramux_train.data.opening import Vae, open_data
from loramux_train.data_set import captions_of, data_set
from loramux_train.outline import Outline
from loramux_train.outlook import Outlook
from loramux_train.output.sampling import draw_samples
from loramux_train.samples import drawing_of, parts_of
from loramux_train.session import Data
from loramux_train.tokens.checks import cut_by_vectors


def open_folders(config: Config, outlook: Outlook, device: torch.device, quiet: bool = False) -> Data:
    """Every picture is read, missing class pictures are drawn, and each is encoded once unless the cache has it.

    Raises:
        DataError: where no run may start; with every reason.
        BadBase: where the base cannot be read.
    """
    source = _Source(config, outlook, device)
    count = tokens_of(outlook.outline)
    with _bar("drawing class pictures", quiet) as drawn:
        opened = open_data(config.data, source.vae_of_data, source.draw, count, drawn=drawn)
    source.forget_base()
    _fill(opened.batches, opened.validation, quiet)
    cached = config.data.crop == "centre"
    if cached:  # every later use is in the cache, so that the device has better use for its memory
        source.vae.to("cpu")
    told, captions = data_set(opened.survey, opened.batches.order, cached), captions_of(opened.survey)
    cut = cut_by_vectors(config.tokens, base.tokenizers(outlook.outline), captions)
    told = replace(told, warnings=(*told.warnings, *cut))
    return Data(opened.batches, opened.validation, told, source.vae, captions)


def tokens_of(outline: Outline) -> CountTokens:
    """Counts with the tokenizer of a base, start and end left out. BadBase where it cannot be read."""
    tokenizer = base.tokenizers(outline)[0]
    return lambda caption: len(tokenizer(caption, add_special_tokens=False, verbose=False)["input_ids"])


class _Source:
    """What the base gives to the data: its VAE, read when it is first asked for, and class pictures."""

    def __init__(self, config: Config, outlook: Outlook, device: torch.device) -> None:
        self._config, self._outlook, self._device = config, outlook, device
        self._vae: Any = None
        self._base: base.Base | None = None

    @property
    def vae(self) -> Any:
        """In fp32: SDXL's overflows in fp16."""
        if self._vae is None:
            self._vae = base.load_vae(self._outlook.outline, torch.float32, self._device)
        return self._vae

    def vae_of_data(self) -> Vae:
        """As the data side takes it."""
        vae = self.vae
        scaling = Scaling(vae.config.scaling_factor, vae.config.shift_factor or 0.0)
        return Vae(encoder_of(vae), module_digest(vae), scaling)

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """Class pictures of the base alone, drawn as samples are; it stays in memory until it is forgotten."""
        if self._base is None:
            self._base = base.load(self._outlook.outline, self._outlook.dtype, self._device)
        parts = parts_of(self._base, self.vae, self._outlook.noise)
        each = [replace(drawing_of(self._config, self._base, prompts), prompts=(p,), seed=s) for p, s in
                zip(prompts, seeds, strict=True)]  # fmt: skip
        return [picture for settings in each for picture in draw_samples(parts, settings)]

    def forget_base(self) -> None:
        """The training reads its own."""
        if self._base is not None:
            self._base = None
            gc.collect()


@contextmanager
def _bar(what: str, quiet: bool) -> Generator[Callable[[int, int], None]]:
    """A bar that appears with the first that is done."""
    with ExitStack() as after:
        bars: list[tqdm[Any]] = []

        def told(done: int, of: int) -> None:
            if not bars:
                bars.append(after.enter_context(tqdm(desc=what, total=of, unit="picture", disable=quiet)))
            bars[0].update(done - bars[0].n)

        yield told


def _fill(batches: FolderBatches, held_out: ValidationBatches, quiet: bool) -> None:
    with tqdm(desc="encoding pictures", unit="picture", dynamic_ncols=True, leave=False, disable=quiet) as bar:
        for _ in batches.fill():
            bar.update()
        for position in range(len(held_out)):
            bar.update(len(held_out.batch(position).latents))
