"""How everything here is timed and told.

Takes callables; gives rows of ratios and one JSON object or table. It knows no model.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

from rich.console import Console
from rich.table import Table

REPEATS = 7
_PACKAGES = ("loramux", "torch", "diffusers", "transformers")


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


def ratio(one: Callable[[], object], other: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median time of `one` over that of `other`; both run in turn, so that a busy machine slows both."""
    times: tuple[list[float], list[float]] = ([], [])
    one()
    other()
    for _ in range(repeats):
        for call, taken in zip((one, other), times, strict=True):
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
    return statistics.median(times[0]) / statistics.median(times[1])


def tell(name: str, rows: Sequence[Row], as_json: bool) -> None:
    """Prints the rows."""
    if as_json:
        print(json.dumps(_report(name, rows), indent=1))
        return
    table = Table("measurement", "value", "unit", "bound", "holds", title=f"loramux bench {name}")
    for row in rows:
        holds = ("yes" if row.holds else "no") if row.bound else ""
        table.add_row(row.name, f"{row.value:.3f}", row.unit, row.bound, holds)
    Console().print(table)


def _report(name: str, rows: Sequence[Row]) -> dict[str, object]:
    return {
        "machine": {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()},
        "versions": {package: version(package) for package in _PACKAGES},
        "command": f"loramux bench {name} --json",
        "rows": [{**asdict(row), "holds": row.holds} for row in rows],
    }
