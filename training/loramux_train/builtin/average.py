"""An exponential moving average of a model's parameters.

Takes parameters after each update; gives a state dict of their average. Knows no optimiser and no schedule.
"""

import torch
from torch import nn


class Average:
    """average <- decay * average + (1 - decay) * weights, with a warm-up so that early weights are forgotten."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Fold in the weights after update number `step` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        live = model.state_dict()
        names = [name for name, tensor in self.weights.items() if tensor.is_floating_point()]
        averaged = [self.weights[name] for name in names]
        torch._foreach_lerp_(averaged, [live[name] for name in names], 1 - decay)
