"""A moving average of the factors.

Takes parameters after each step; holds their average. Knows no optimiser.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """average <- d average + (1 - d) value, where d = min(decay, (1 + step) / (10 + step)) forgets the start soon."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.values = {name: value.detach().clone() for name, value in parameters.items()}
        self._live = parameters
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Fold in the values after a step, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), list(self._live.values()), 1 - decay)


@contextmanager
def holding(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Generator[None]:
    """Within it the parameters hold these values; afterwards their own, bit for bit."""
    own = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(own[name])
