"""Two runs on a folder of pictures with a tiny base, one that nobody touches and one that is killed again and again.

`python killed_run.py BASE PICTURES FOLDER STEPS KILLS` leaves FOLDER/whole and FOLDER/broken, and prints how many
processes of the second were killed. Each is forked where all is imported, and goes on where there is a checkpoint.
"""

import os
import random
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path

from loramux_train import config, session
from loramux_train.checkpoint import every
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


def start(made: config.Config) -> int:
    """A process that trains until it is done."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        session.run(made, partial(open_folders, quiet=True), "latest" if every(session.checkpoints(made)) else None)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def ends_well(child: int) -> None:
    assert os.waitpid(child, 0)[1] == 0, "a run failed"


def newest(made: config.Config) -> str:
    found = every(session.checkpoints(made))
    return found[-1].name if found else ""


def kill_once_there_is_a_new_checkpoint(child: int, made: config.Config, delay: float) -> bool:
    """The delay decides where between two checkpoints, or within the writing of one, the process dies. False where it
    ended before."""
    before = newest(made)
    while newest(made) == before:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, "a run failed"
            return False
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def main(base: Path, pictures: Path, folder: Path, steps: int, kills: int) -> None:
    whole, broken = (settings(base, pictures, folder / name, steps) for name in ("whole", "broken"))
    ends_well(start(whole))
    delays, killed = random.Random(kills), 0
    for _ in range(kills):
        if (folder / "broken/report.json").exists():
            break
        killed += kill_once_there_is_a_new_checkpoint(start(broken), broken, delays.uniform(0, 0.3))
    if not (folder / "broken/report.json").exists():
        ends_well(start(broken))
    print(killed)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), *map(int, sys.argv[4:6]))
