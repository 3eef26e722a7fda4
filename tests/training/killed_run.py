"""A process that trains on a folder of pictures with a tiny base until it is done, or is killed.

`python killed_run.py BASE PICTURES OUT STEPS`; it goes on where there is a checkpoint.
"""

import sys
from functools import partial
from pathlib import Path

from loramux_train import config, session
from loramux_train.data_source import open_folders


def settings(base: Path, pictures: Path, out: Path, steps: int) -> config.Config:
    """Everything that has state: an average, validations, warm-up, dropout, a text encoder that stops, samples."""
    return config.resolved(config.parse({
        "data": {"folders": [str(pictures)], "resolution": 16, "batch_size": 2, "validation_share": 0.3, "flip": True,
                 "crop": "random", "caption_dropout": 0.2},
        "base": {"path": str(base)},
        "adapter": {"ema": 0.9, "dropout": 0.2, "rank_dropout": 0.1},
        "targets": {"modules": "locon", "text_encoder": True},
        "optimiser": {"rate": 1e-2, "schedule": "cosine", "text_encoder_stop": 9},
        "run": {"steps": steps, "threads": 1, "save_every": 2, "keep": 2, "validate_every": 3, "accumulation": 2,
                "device": "cpu"},
        "samples": {"every": 3, "steps": 2},
        "output": {"folder": str(out), "dtype": "fp32", "which": "best"},
    }))  # fmt: skip


if __name__ == "__main__":
    base, pictures, out = map(Path, sys.argv[1:4])
    made = settings(base, pictures, out, int(sys.argv[4]))
    resume = "latest" if session.checkpoint.every(session.checkpoints(made)) else None
    session.run(made, partial(open_folders, quiet=True), resume)
