"""Checkpoints: everything a training run needs to go on as if it had never stopped.

Takes named state dicts (weights, EMA, optimiser), the step and the random generators; gives one file, written beside
and renamed so that a crash never leaves half of one. Knows nothing of what is trained.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


@dataclass(slots=True)
class Run:
    """A run's position: the next update to do, its history and its sources of randomness."""

    seed: int
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    random: np.random.Generator = field(init=False)
    noise: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.noise = torch.Generator().manual_seed(self.seed)


def save(path: Path, run: Run, states: dict[str, State]) -> None:
    """Write the checkpoint atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    payload = {
        "step": run.step,
        "seed": run.seed,
        "seconds": run.seconds,
        "losses": run.losses,
        "random": run.random.bit_generator.state,
        "noise": run.noise.get_state(),
        "states": states,
    }
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        torch.save(payload, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path, run: Run) -> dict[str, State]:
    """Bring `run` to where the checkpoint stopped and return the saved state dicts."""
    payload = torch.load(path, weights_only=True)
    if payload["seed"] != run.seed:
        raise ValueError(f"{path}: made with seed {payload['seed']}, this run has seed {run.seed}")
    run.step, run.seconds, run.losses = payload["step"], payload["seconds"], payload["losses"]
    run.random.bit_generator.state = payload["random"]
    run.noise.set_state(payload["noise"])
    return payload["states"]
