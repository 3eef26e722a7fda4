"""`python -m loramux_train.bench.side SIDE FOLDER`: one side in a process of its own, told by lines when to step.

Takes a number of steps a line; gives a line of JSON for each: wall and processor time of those steps. The first line
given tells of the side before it steps, the last, after an empty line, how it was left.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch

from loramux_train.bench.ours import Ours
from loramux_train.bench.plain import Plain
from loramux_train.bench.setting import THREADS

SIDES = ("ours", "plain", "plain, cached")


def main() -> None:
    """Serve the lines."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    side = Ours(folder) if name == "ours" else Plain(folder, cached=name == "plain, cached")
    before = [parameter.detach().clone() for parameter in side.trained]
    _tell(loss=side.known_loss(), parameters=sum(p.numel() for p in side.trained))
    for line in sys.stdin:
        if not line.strip():
            break
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            side.step()
        _tell(wall=time.perf_counter() - wall, processor=time.process_time() - processor)
    moved = all(not torch.equal(*pair) for pair in zip(before, side.trained, strict=True))
    _tell(moved=moved, bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _tell(**values: float) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
