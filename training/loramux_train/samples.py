"""Sample pictures of a run: a row of the sheet every so many steps, and the pairs of its report.

Takes a base's parts and settings; draws with the factors that would be written. The training does not notice. Knows no
checkpoint and no adapter file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from loramux_train.average import holding
from loramux_train.base import Base
from loramux_train.base_settings import BUILTIN
from loramux_train.config import Config
from loramux_train.noise import Noise
from loramux_train.output.sample_sheet import SampleSheet, shown
from loramux_train.output.sampling import BaseParts, Read, SampleSettings, draw_samples, without_adapter
from loramux_train.output.warnings import SamplePair
from loramux_train.training import Report, Training
from loramux_train.watchers import Watcher

_GUIDANCE, _GUIDANCE_XL, _GUIDANCE_BUILTIN = 7.5, 5.0, 3.0


def parts_of(base: Base, vae: Any, noise: Noise) -> BaseParts:
    """The base as pictures are drawn with it; the scheduler predicts what the training does."""
    scheduler = {**base.outline.scheduler, "prediction_type": noise.prediction}
    unet: Any = base.unet
    return BaseParts(unet, vae, base.text_encoders, base.tokenizers, scheduler)


def drawing_of(config: Config, base: Base, prompts: Sequence[str]) -> SampleSettings:
    """How the settings ask for pictures of prompts."""
    own, edge = config.samples, config.data.resolution
    usual = _GUIDANCE_XL if base.outline.family == "sdxl" else _GUIDANCE
    if config.base.path == BUILTIN:
        usual = _GUIDANCE_BUILTIN
    return SampleSettings(
        prompts=tuple(prompts),
        width=own.width or edge,
        height=own.height or edge,
        negative=own.negative,
        seed=own.seed,
        steps=own.steps,
        guidance=usual if own.guidance is None else own.guidance,
    )


class Samples(Watcher):
    """Draws before the first step, every `every` steps and after the last."""

    def __init__(self, path: Path, parts: BaseParts, settings: SampleSettings, every: int) -> None:
        size = shown(Image.new("RGB", (settings.width, settings.height))).size
        self.sheet = SampleSheet(path, settings.prompts, size)
        self._parts, self._settings, self._every = parts, settings, every

    def started(self, training: Training) -> None:
        self._training = training
        self.sheet.drop_after(training.done)
        if training.done == 0:
            self._add(0)

    def stepped(self, report: Report) -> None:
        if report.step % self._every == 0 or self._training.finished:
            self._add(report.step)

    def seen(self) -> tuple[SamplePair, ...]:
        """The newest row beside the base's, as far as they are drawn."""
        rows = {row.step: row.images for row in self.sheet.rows}
        last = max(rows, default=0)
        return self._pairs(rows[0], rows[last]) if 0 in rows and last else ()

    def compare(self, values: Mapping[str, Tensor]) -> tuple[SamplePair, ...]:
        """Pictures with these factors beside the base's; a run that ended early gets its last row."""
        rows, done = {row.step: row.images for row in self.sheet.rows}, self._training.done
        if done not in rows:
            self._add(done)
            rows[done] = self.sheet.rows[-1].images
        after = rows[done]
        if any(not torch.equal(value, values[name]) for name, value in self._training.values.items()):
            with holding(self._training.parameters, values):
                after = self._draw()
        if 0 in rows:
            return self._pairs(rows[0], after)
        return self._pairs(self._of_the_base(), after)

    def _add(self, step: int) -> None:
        with holding(self._training.parameters, self._training.values):
            self.sheet.add(step, self._draw())

    def _of_the_base(self) -> tuple[Image.Image, ...]:
        """Layers that are PEFT's own are switched off, which DoRA's need; of all others B is zero. New words are those
        they began as."""
        learnt, began = self._training.parameters, self._training.tokens.began
        none = {name: torch.zeros_like(value) if name.endswith(".B") else value for name, value in learnt.items()}
        with holding(learnt, none | began), without_adapter(self._parts.models()):
            return self._draw()

    def _draw(self) -> tuple[Image.Image, ...]:
        return tuple(map(shown, draw_samples(self._parts, self._settings, self._read())))

    def _read(self) -> Read | None:
        """How prompts with the run's new words are read, where it has any."""
        text = self._training.text
        if not self._training.tokens.parameters:
            return None

        def read(prompt: str) -> tuple[Tensor, Tensor | None]:
            embedded = text.read(prompt)
            return embedded.context, embedded.pooled

        return read

    def _pairs(self, before: Sequence[Image.Image], after: Sequence[Image.Image]) -> tuple[SamplePair, ...]:
        prompts, seed = self._settings.prompts, self._settings.seed
        return tuple(
            SamplePair(prompt, seed + at, one, other)
            for at, (prompt, one, other) in enumerate(zip(prompts, before, after, strict=True))
        )
