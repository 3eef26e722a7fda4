"""The command `loramux bench`.

Takes a name; runs that benchmark and prints its rows. The exit status is 0 whatever holds.
"""

import logging
from typing import Literal

Name = Literal["kernels", "overhead", "engine", "store"]


def bench(name: Name, *, json: bool = False) -> int:
    """Measure this machine.

    Parameters
    ----------
    name:
        kernels: a layer with rank rows against the layer alone. overhead: the wrapped base without adapters
        against diffusers' own UNet. engine: one forward of eight blends against eight forwards and against
        none. store: publishing a file against hashing it.
    json:
        Print one JSON object instead of a table.
    """
    from loramux_server import logs
    from loramux_server.bench import engine, harness, kernels, overhead, store

    logs.configure(logging.WARNING)  # standard output is for the rows
    modules = {"kernels": kernels, "overhead": overhead, "engine": engine, "store": store}
    harness.tell(name, modules[name].measure(), json)
    return 0
