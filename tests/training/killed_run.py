"""A process that trains on a tiny base until it is done, or is killed.

`python killed_run.py BASE OUT STEPS [resume]`; the batches are made from their positions.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "shared"))

import tiny_training as tiny

from loramux_train import config, session


def settings(base: Path, out: Path, steps: int) -> config.Config:
    """Everything that has state: an average, validations, warm-up, dropout, a text encoder that stops."""
    return config.resolved(config.parse({
        "data": {"folders": ["unused"]},
        "base": {"path": str(base)},
        "adapter": {"ema": 0.9, "dropout": 0.2, "rank_dropout": 0.1},
        "targets": {"modules": "locon", "text_encoder": True},
        "optimiser": {"rate": 1e-2, "schedule": "cosine", "text_encoder_stop": 9},
        "run": {"steps": steps, "save_every": 2, "keep": 2, "validate_every": 3, "accumulation": 2, "device": "cpu"},
        "output": {"folder": str(out), "dtype": "fp32", "which": "best"},
    }))  # fmt: skip


def data(*_: object) -> session.Data:
    """Six batches a validation."""
    return session.Data(tiny.MadeBatches(), tiny.MadeBatches(length=2, seed=1))


if __name__ == "__main__":
    made = settings(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    resume = "latest" if session.checkpoint.every(session.checkpoints(made)) else None
    session.run(made, data, resume)
