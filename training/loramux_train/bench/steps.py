"""Steps per second and memory of the trainer, against a plain loop of PEFT and diffusers.

Takes nothing; gives (name, value, unit, bound) of what `loramux bench train` tells. Each side is a process of its own,
so that its memory is its own; they step in turn, in another order each round. Knows no model.
"""

import json
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loramux_train.bench.setting import BATCH, EDGE, RANK, write_pictures
from loramux_train.bench.side import SIDES

ROUNDS = 9
STEPS = 8  # of a round
_SAME = 1e-4  # relative difference of losses, fp32

Measured = tuple[str, float, str, str]


def measure() -> list[Measured]:
    """The sides are checked to compute the same, then timed in turn."""
    return measure_at(ROUNDS, STEPS)


def measure_at(rounds: int, steps: int) -> list[Measured]:
    """Medians of so many rounds.

    Raises:
        RuntimeError: where sides differ in what they compute or train, or one of them fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder))
        sides = {name: Side(name, folder) for name in SIDES}
        try:
            check({name: side.heard() for name, side in sides.items()})
            for side in sides.values():
                side.steps(1)  # untimed
            order = list(sides)
            for _ in range(rounds):
                random.shuffle(order)
                for name in order:
                    sides[name].timed(steps)
            left = {name: side.ended() for name, side in sides.items()}
        finally:
            for side in sides.values():
                side.stop()
    for name, said in left.items():
        if not said["moved"]:
            raise RuntimeError(f"{name}: a factor did not move")
    return _rows(sides, steps, {name: said["bytes"] for name, said in left.items()})


@dataclass(slots=True)
class Side:
    """A process, and the seconds of its rounds by the wall clock and of its processors."""

    name: str
    folder: str
    wall: list[float] = field(default_factory=list[float])
    processor: list[float] = field(default_factory=list[float])
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        command = [sys.executable, "-m", "loramux_train.bench.side", self.name, self.folder]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def heard(self) -> dict[str, Any]:
        """The next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: ended with status {self.process.wait()}; "
                               f"python -m loramux_train.bench.side '{self.name}' FOLDER says why")  # fmt: skip
        return json.loads(line)

    def steps(self, count: int) -> dict[str, Any]:
        """Step, and what was told of it."""
        self._say(f"{count}\n")
        return self.heard()

    def timed(self, count: int) -> None:
        """Step and note the time."""
        told = self.steps(count)
        self.wall.append(told["wall"])
        self.processor.append(told["processor"])

    def ended(self) -> dict[str, Any]:
        """What it says at its end."""
        self._say("\n")
        return self.heard()

    def stop(self) -> None:
        """Whatever it does."""
        self.process.kill()
        self.process.communicate()

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()


def check(told: dict[str, dict[str, Any]]) -> None:
    """RuntimeError where a side trains other parameters than ours, or has another loss before any step."""
    first = told["ours"]
    for name, said in told.items():
        if said["parameters"] != first["parameters"]:
            raise RuntimeError(f"{name} trains {said['parameters']} parameters, ours {first['parameters']}")
        if abs(said["loss"] / first["loss"] - 1) > _SAME:
            raise RuntimeError(f"{name} has a loss of {said['loss']} where ours is {first['loss']}")


def _rows(sides: dict[str, Side], steps: int, memory: dict[str, int]) -> list[Measured]:
    wall = {name: statistics.median(side.wall) for name, side in sides.items()}
    processor = {name: statistics.median(side.processor) for name, side in sides.items()}
    what = f"training of the built-in base at {EDGE}x{EDGE}, batch {BATCH}, rank {RANK} in its attention"
    rows: list[Measured] = [(f"{what}: steps a second, {name}", steps / wall[name], "1/s", "") for name in sides]
    return [
        *rows,
        (f"{what}: steps a second, ours / plain", wall["plain"] / wall["ours"], "x", ">=1.2"),
        (f"{what}: steps a second, ours / plain with caches", wall["plain, cached"] / wall["ours"], "x", ""),
        (f"{what}: processor time of a step, plain / ours", processor["plain"] / processor["ours"], "x", ""),
        (f"{what}: peak memory, ours / plain", memory["ours"] / memory["plain"], "x", "<=1"),
        (f"{what}: peak memory, ours", memory["ours"] / 2**20, "MiB", ""),
    ]
