"""What a run's figures warn of.

Takes curves, norms and pictures; gives sentences that say what was seen and what to do. Thresholds are rules of thumb.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from loramux_train.output.norms import GroupNorm
from loramux_train.output.run_log import RunLog, Series

__all__ = ["SamplePair", "no_effect", "over_training", "rising", "warnings_of"]

_RISE = 1.02
"""Validation noise, timesteps and captions are fixed, so two per cent is no chance."""
_AFTER = 2
"""Validations after the lowest one before a rise is called one."""
_FAINT = 1e-5
"""Of the base's norm: below what fp16 resolves of it."""
_SAME = 0.5
"""Levels out of 255, mean over a picture: less cannot be seen."""


@dataclass(frozen=True, slots=True)
class SamplePair:
    """A prompt's picture without and with the adapter, from the same seed."""

    prompt: str
    seed: int
    without: Image.Image
    with_adapter: Image.Image

    def difference(self) -> float:
        """Mean over pixels and channels, 0 to 255."""
        one, other = (np.asarray(image.convert("RGB"), dtype=float) for image in (self.without, self.with_adapter))
        return float(np.abs(one - other).mean())


def warnings_of(log: RunLog, norms: Sequence[GroupNorm], pairs: Sequence[SamplePair]) -> tuple[str, ...]:
    """All there are."""
    return tuple(filter(None, (over_training(log.validation), rising(log.loss), no_effect(norms, pairs))))


def over_training(validation: Series) -> str:
    """Whether the validation loss rose again."""
    if not validation.values:
        return ""
    lowest, least = min(zip(validation.values, validation.steps, strict=True))
    after = [value for step, value in zip(validation.steps, validation.values, strict=True) if step > least]
    if len(after) < _AFTER or min(after[-_AFTER:]) <= lowest * _RISE:
        return ""
    rise = 100 * (after[-1] / lowest - 1)
    return (
        f"Over-training: the validation loss was lowest at step {least} ({lowest:.4g}) and is {rise:.0f} % above that "
        f"at step {validation.steps[-1]}. The adapter of step {least} may be the better one; fewer steps, a lower "
        "learning rate, a lower rank or more pictures help."
    )


def rising(loss: Series) -> str:
    """Whether the training loss ended above where it began."""
    part = len(loss.values) // 10
    if part < 5:
        return ""
    first, last = (sum(values) / part for values in (loss.values[:part], loss.values[-part:]))
    if last <= first * 1.1:
        return ""
    return f"The loss rose, from {first:.4g} to {last:.4g}: lower the learning rate."


def no_effect(norms: Sequence[GroupNorm], pairs: Sequence[SamplePair]) -> str:
    """Whether the adapter changes anything that matters."""
    most = max((norm.largest for norm in norms), default=1.0)
    seen = max((pair.difference() for pair in pairs), default=255.0)
    if most >= _FAINT and seen >= _SAME:
        return ""
    why = f"it changes no layer by more than {most:.1g} of its weight"
    if most >= _FAINT:
        why = f"no sample differs from the base's by more than {seen:.2g} of 255 levels"
    return f"No effect: {why}. Raise the learning rate or train for longer."
