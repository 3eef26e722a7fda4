"""Factors as a trainer holds them, the facts of a made-up run, and what the factors mean.

Takes layouts and seeds; gives TrainedModules, RunFacts, and deltas in float64 straight from the formulas: the oracle.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from loramux_store import Layout
from loramux_train.output.facts import (
    About,
    BaseFacts,
    DataFacts,
    NetworkFacts,
    OptimiserFacts,
    PictureFolder,
    Progress,
    RunFacts,
)
from loramux_train.output.trained import TrainedModule

__all__ = ["PROGRESS", "delta", "deltas", "facts", "trained"]

PROGRESS = Progress(250, 3, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))


def trained(layout: Layout, paths: Iterable[str], **said: Any) -> list[TrainedModule]:
    """Random factors; ranks and alphas differ from module to module unless one is said, up is `size` large."""
    generator = torch.Generator().manual_seed(7)
    dora, rslora, size = said.get("dora", False), said.get("rslora", False), said.get("size", 0.05)
    made: list[TrainedModule] = []
    for at, path in enumerate(paths):
        shape = layout.modules[path].shape
        rank = said.get("rank") or 1 + at % 4
        part, _, inner = path.partition(".")
        down = torch.randn(rank, *shape[1:], generator=generator) / math.sqrt(rank)
        up = size * torch.randn(shape[0], rank, *(1,) * (len(shape) - 2), generator=generator)
        magnitude = torch.rand(shape[0], generator=generator) + 0.5 if dora else None
        alpha = said.get("alpha") or 1.5 * (at % 3 + 1)
        # transformers 5 names modules of CLIP so
        made.append(TrainedModule(part, inner.removeprefix("text_model."), down, up, alpha, rslora, magnitude))  # type: ignore[arg-type]
    return made


def delta(module: TrainedModule) -> Tensor:
    """scale x up @ down in float64, in the weight's shape."""
    scale = module.alpha / (math.sqrt(module.rank) if module.rslora else module.rank)
    down, up = module.down.double(), module.up.double().flatten(1)
    return scale * (up @ down.flatten(1)).reshape(len(up), *down.shape[1:])


def deltas(modules: Iterable[TrainedModule]) -> dict[str, Tensor]:
    return {module.full_path: delta(module) for module in modules}


def facts(**said: Any) -> RunFacts:
    """A run's; said: fields of its parts, such as about=About(...)."""
    run = RunFacts(
        about=About("my-style", "My style", "Ada", "Ink <drawings>", "CC0-1.0", "zib style", "Say zib.", ("ink",)),
        base=BaseFacts("tiny", "ab" * 32, "sd1", "epsilon"),
        network=NetworkFacts(4, 2.0),
        optimiser=OptimiserFacts("AdamW", 1e-3, None, "cosine", 10, 500, 4, min_snr_gamma=5.0),
        data=DataFacts(
            (
                PictureFolder("cats", 8, 2, {"a zib cat": 5, "a dog": 3}),
                PictureFolder("plain", 4, prior=True),
            ),
            (512, 512),
            {(512, 512): 6, (448, 576): 2},
            4,
            latents_cached=True,
            bucketed=True,
        ),
        session="1234",
        started=datetime(2026, 1, 2, 3, 0, 0, tzinfo=UTC),
        software="loramux 0.1.0",
    )
    return replace(run, **said)
