"""Triton's kernels run in its interpreter where there is no card; triton reads this when it is imported."""

import os
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent / "shared"))  # what tests of several rooms import

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
