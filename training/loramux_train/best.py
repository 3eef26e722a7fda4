"""The factors of the least validation loss, and how long it has been the least.

Takes losses as they are measured; says whether a run should end early. Knows no model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True)
class Best:
    """loss, step and values of the least loss; since: validations after it."""

    loss: float = math.inf
    step: int = 0
    since: int = 0
    values: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def see(self, step: int, loss: float, values: Mapping[str, Tensor]) -> bool:
        """Take note of a validation; whether it is a new best."""
        if not loss < self.loss:
            self.since += 1
            return False
        self.loss, self.step, self.since = loss, step, 0
        self.values = {name: value.detach().clone() for name, value in values.items()}
        return True

    def enough(self, patience: int | None) -> bool:
        """Whether the last `patience` validations brought nothing."""
        return patience is not None and self.since >= patience
