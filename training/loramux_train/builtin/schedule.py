"""Learning rates over a run.

Takes an update number and the length of the run; gives a factor on the peak rate. A pure function of both, so a run
resumed with another length simply follows the new curve from where it is.
"""

import math


def cosine(step: int, updates: int, warmup: int = 100) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, updates - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
