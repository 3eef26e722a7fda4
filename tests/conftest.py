"""Where the tests run: Triton's kernels in its interpreter where there is no card (triton reads this when it is
imported), and workers side by side, each with its part of the cores."""

import os
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent / "shared"))  # what tests of several rooms import

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # More threads than cores would wait for each other. The variable is for the processes that tests start.
    threads = max(1, (os.cpu_count() or 1) // int(workers))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
