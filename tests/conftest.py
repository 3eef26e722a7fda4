"""Where the tests run: Triton's kernels in its interpreter where there is no card (triton reads this when it is
imported), workers side by side, each with its part of the cores, and no example against the clock."""

import os
import sys
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings

sys.path.append(str(Path(__file__).parent / "shared"))  # what tests of several rooms import

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # More threads than cores would wait for each other. The variable is for the processes that tests start.
    threads = max(1, (os.cpu_count() or 1) // int(workers))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)

# How long an example takes tells of the machine and what else it does, not of the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
