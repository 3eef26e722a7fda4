"""Optimisers of factors and the course of their rates.

Takes parameters and settings; gives an optimiser, and a rate for every step as a pure function of it, so that a resumed
run of another length follows the new curve from where it is. Knows no model.
"""

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from loramux_train.errors import PackageMissing
from loramux_train.optimiser_settings import OptimiserSettings

_PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}


def build(
    unet: Sequence[nn.Parameter],
    text: Sequence[nn.Parameter],
    settings: OptimiserSettings,
    tokens: Sequence[nn.Parameter] = (),
    tokens_rate: float | None = None,
) -> Any:
    """The optimiser, with a group for each kind of parameters there are; each knows its `peak` rate. Needs resolved
    rates. The vectors of new words do not decay: their size is not measured from zero.

    Raises:
        PackageMissing: where the optimiser's package is not installed; names it.
    """
    assert settings.rate is not None and settings.text_encoder_rate is not None
    groups: list[dict[str, Any]] = []
    if unet:
        groups.append({"params": list(unet), "peak": settings.rate, "lr": settings.rate})
    if text:
        groups.append({"params": list(text), "peak": settings.text_encoder_rate, "lr": settings.text_encoder_rate})
    if tokens:
        groups.append({"params": list(tokens), "peak": tokens_rate, "lr": tokens_rate, "weight_decay": 0.0})
    common: dict[str, Any] = {"betas": settings.betas, "weight_decay": settings.weight_decay}
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, fused=True, **common)
    package = _package(settings.name)
    if settings.name == "prodigy":
        # as its authors advise for a warm-up and for diffusion models
        return package.Prodigy(groups, safeguard_warmup=True, use_bias_correction=True, **common)
    return package.optim.AdamW8bit(groups, **common)


def check_installed(name: str) -> None:
    """Raises PackageMissing where an optimiser's package is not installed."""
    if name in _PACKAGES:
        _package(name)


def set_rates(optimiser: Any, factor: float) -> list[float]:
    """Give every group its peak rate times a factor, and return the rates."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor
    return [group["lr"] for group in optimiser.param_groups]


def rate_factor(step: int, steps: int, settings: OptimiserSettings) -> float:
    """The share of the peak rate at a step, counted from 0: a linear rise, then all of it or half a cosine to 0."""
    rise = math.ceil(settings.warmup * steps)
    if step < rise:
        return (step + 1) / rise
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, steps - rise))))


def _package(name: str) -> Any:
    package = _PACKAGES[name]
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise PackageMissing(
            f"optimiser.name is {name}, which needs the package {package}: pip install {package} ({error})"
        ) from error
