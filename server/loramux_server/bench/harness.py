"""How everything here is timed and told.

Takes callables; gives rows of ratios and one JSON object or table. It knows no model and no device.
"""

import datetime
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

REPEATS = 7
_PACKAGES = ("loramux", "torch", "triton", "diffusers", "transformers", "peft")

Name = TypeVar("Name")
Clock = Callable[[Callable[[], object]], float]
"""Seconds that one call takes."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. bound: `<=1.15` or `>=2`, or empty where nothing is promised."""

    name: str
    value: float
    unit: str
    bound: str = ""

    @property
    def holds(self) -> bool:
        """Whether the value keeps the bound."""
        if not self.bound:
            return True
        limit = float(self.bound[2:])
        return self.value <= limit if self.bound.startswith("<=") else self.value >= limit


def wall(call: Callable[[], object]) -> float:
    """By the wall clock."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def processor(call: Callable[[], object]) -> float:
    """Processor time of all threads of this process: what others take of the machine does not count."""
    started = time.process_time()
    call()
    return time.process_time() - started


def medians(
    calls: Mapping[Name, Callable[[], object]],
    repeats: int = REPEATS,
    clock: Clock = wall,
    *,
    seconds: float = 0.0,
    warm: bool = False,
) -> dict[Name, float]:
    """Median time of every call; all run in every round, so that a busy machine slows all, and once beforehand
    untimed. The order is another in every round: what runs after a long call often meets the end of a time slice.

    seconds: further rounds are run until the timed ones have taken so long. warm: all have run already.
    """
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for call in () if warm else calls.values():
        call()
    order, shuffle = list(calls), random.Random(0).shuffle
    spent, rounds = 0.0, 0
    while rounds < repeats or spent < seconds:
        shuffle(order)
        for name in order:
            taken = clock(calls[name])
            times[name].append(taken)
            spent += taken
        rounds += 1
    return {name: statistics.median(taken) for name, taken in times.items()}


def ratio(one: Callable[[], object], other: Callable[[], object], repeats: int = REPEATS, clock: Clock = wall) -> float:
    """Median time of `one` over that of `other`."""
    taken = medians({"one": one, "other": other}, repeats, clock)
    return taken["one"] / taken["other"]


def tell(name: str, rows: Sequence[Row], as_json: bool) -> None:
    """Prints the rows."""
    if as_json:
        print(json.dumps(report(f"loramux bench {name} --json", rows), indent=1))
        return
    from rich.console import Console  # absent where only the kernels are measured
    from rich.table import Table

    table = Table("measurement", "value", "unit", "bound", "holds", title=f"loramux bench {name}")
    for row in rows:
        holds = ("yes" if row.holds else "no") if row.bound else ""
        table.add_row(row.name, f"{row.value:.3f}", row.unit, row.bound, holds)
    Console().print(table)


def report(command: str, rows: Sequence[Row], machine: Mapping[str, object] | None = None) -> dict[str, object]:
    """The one form of every result. machine: what else is known of it."""
    return {
        "machine": {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
            **(machine or {}),
        },
        "versions": {package: _version(package) for package in _PACKAGES},
        "command": command,
        "rows": [{**asdict(row), "holds": row.holds} for row in rows],
    }


def _version(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
