"""Which tensor operations a call launches.

Takes a callable; gives counts. It knows no model.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


def operations(call: Callable[[], object]) -> Counter[str]:
    """The tensor operations that a call launches, by name."""
    seen = Counter[str]()

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen[str(func)] += 1
            return func(*args, **(kwargs or {}))

    with Seen():
        call()
    return seen
