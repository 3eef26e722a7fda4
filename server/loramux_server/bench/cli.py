"""The command `loramux bench`.

Takes a name; runs that benchmark and prints its rows. The exit status is 0 whatever holds, and 2 where the machine
lacks what is measured. What other packages bring is found by the entry points of the group `loramux.benchmarks`:
functions that give (name, value, unit, bound) of each row.
"""

import logging
import os
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from loramux_server.bench.harness import Row

GROUP = "loramux.benchmarks"

Name = Literal["kernels", "overhead", "engine", "unet", "store", "scheduler", "tiers", "serve", "train", "soak", "tune"]


def bench(name: Name, *, json: bool = False) -> int:
    """Measure this machine.

    Parameters
    ----------
    name:
        kernels: the linear layers of two UNets with a blend in their rank rows against the layers alone and
        against PEFT. overhead: the wrapped base without adapters against diffusers' own UNet, and the host's work for
        resident blends. engine: one forward of eight blends against eight forwards and against none, against
        diffusers with PEFT, and what lies between two forwards. unet: a UNet of Stable Diffusion 1.5's size with one
        adapter against the same without and with PEFT; takes 4 GB. store: publishing a file against hashing it; a page
        of a hundred thousand adapters, and opening a store of as many. scheduler: how long requests take over their
        fair share, on a simulated device; also draws out/bench/scheduler.png. tiers: a thousand adapters asked for with
        a Zipf tail where fifty fit on the device, and the gaps between ticks beside a slow disk. serve: a server asked
        for one and a half times what it can do, for three minutes. train: steps a second and memory of `loramux train`
        against a plain loop of PEFT and diffusers. soak: thousands of requests that load,
        blend, evict and are cancelled, and whether anything is left behind; takes long. tune: which kernel is fastest
        for each layer on the NVIDIA card here; rewrites the kernels' dispatch table.
    json:
        Print one JSON object instead of a table.
    """
    # Where other processes take their share of the cores, threads that wait by spinning use up their own, and every
    # product costs a time slice. libgomp reads this when torch is imported.
    os.putenv("OMP_WAIT_POLICY", "PASSIVE")
    from loramux_server import memory

    memory.keep_freed()  # as `loramux serve` does it
    from loramux_server import logs
    from loramux_server.bench import (
        engine,
        harness,
        kernels,
        overhead,
        scheduling,
        serve,
        soak,
        store,
        tiers,
        tune,
        unet,
    )

    if name == "tune" and not tune.possible():
        print(
            "loramux bench tune measures an NVIDIA card of compute capability 8.0 or newer: none here", file=sys.stderr
        )
        return 2
    if name == "train":
        return _from_elsewhere(name, json)
    logs.configure(logging.WARNING)  # standard output is for the rows
    modules = {
        "kernels": kernels,
        "overhead": overhead,
        "engine": engine,
        "unet": unet,
        "store": store,
        "scheduler": scheduling,
        "tiers": tiers,
        "serve": serve,
        "soak": soak,
        "tune": tune,
    }
    harness.tell(name, modules[name].measure(), json)
    return 0


def _from_elsewhere(name: str, as_json: bool) -> int:
    """A benchmark that another package brings."""
    from loramux_server.bench import harness

    found = tuple(entry_points(group=GROUP, name=name))
    if not found:
        print(f"loramux bench {name} measures what is not installed: pip install 'loramux[{name}]'", file=sys.stderr)
        return 2
    rows: list[Row] = [harness.Row(*measured) for measured in found[0].load()()]
    harness.tell(name, rows, as_json)
    return 0
