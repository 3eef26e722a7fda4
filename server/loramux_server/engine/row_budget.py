"""How many rows a forward may have: what fits the device's memory, measured once at the start.

Takes a base on a CUDA device; gives a number of rows by latent area. It knows no request and no queue. Should a forward
run out of memory all the same, the engine halves it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from loramux_server.engine.conditioning import blank, unet_arguments
from loramux_server.engine.pipeline import Base

MOST_ROWS = 64  # far above where a forward of Stable Diffusion is as fast a row as it gets; more only makes ticks long
_USABLE = 0.8  # the rest is for decoding, prompts and the allocator's gaps


@dataclass(frozen=True, slots=True)
class RowBudget:
    """spare_bytes: for the rows of a forward; row_bytes: of a row, for every unit of latent area."""

    spare_bytes: float
    row_bytes: float

    def rows(self, area: int) -> int:
        """Most rows of a forward at this latent area: at least a guided picture's two."""
        return max(2, min(MOST_ROWS, int(self.spare_bytes / (self.row_bytes * area))))


def measure(peak: Callable[[int], int], area: int, free_bytes: int, forwards: int = 1) -> RowBudget:
    """peak: bytes that a forward of so many rows at this latent area needs at most, beside what is there; forwards:
    how many have their memory at once, a captured one keeps its own.

    A straight line through 2 and 4 rows. Memory grows with the area at most in proportion where attention is
    computed piece by piece, which torch does on CUDA.
    """
    two, four = peak(2), peak(4)
    row = (four - two) / 2 if four > two else max(four, 1) / 4
    return RowBudget(free_bytes * _USABLE / forwards - max(0.0, two - 2 * row), row / area)


def on_cuda(base: Base, later_bytes: int, forwards: int) -> RowBudget:
    """The budget of a base on its card, as full as it is now; later_bytes: what will be taken up beside forwards;
    forwards: as for `measure`."""
    side, device = base.unet.config["sample_size"], base.device

    @torch.inference_mode()
    def peak(rows: int) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        latents = torch.zeros(rows, base.unet.config["in_channels"], side, side, device=device, dtype=base.unet.dtype)
        base.unet(latents, 500, **unet_arguments([blank(base, rows)], base.unet.dtype), return_dict=False)
        return torch.cuda.max_memory_allocated(device) - before

    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return measure(peak, side * side, torch.cuda.mem_get_info(device)[0] + cached - later_bytes, forwards)
