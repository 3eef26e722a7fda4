"""Device memory that ran out, told as an error of the server's own tree.

Takes a block of work and what it is for; gives the error. It knows neither what allocates nor how much.
"""

from collections.abc import Generator
from contextlib import contextmanager

import torch

from loramux_server.errors import OutOfMemory

RAN_OUT = (torch.OutOfMemoryError, MemoryError)


@contextmanager
def fitting(what: str) -> Generator[None]:
    """Within it, memory that runs out is OutOfMemory and says that `what` does not fit.

    Raises:
        OutOfMemory: in place of torch's and Python's own.
    """
    try:
        yield
    except RAN_OUT as error:
        raise OutOfMemory(f"{what} does not fit into device memory") from error
