"""A run's log of JSON lines, read back as curves.

Takes the file: a line an event (`step`, `validation`, ...), each with its step; gives a RunLog. A run that was resumed
has one log, in which steps that were done again stand twice: the later line counts, and what the first try did after it
does not. Knows no loop and no pictures.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loramux_train.output.errors import BadLog

__all__ = ["RunLog", "Series", "read_log"]


@dataclass(frozen=True, slots=True)
class Series:
    """A value at some steps, in their order; only finite ones."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class RunLog:
    """validation: what was measured as the last one was; rates: one of each group of parameters, the UNet's first;
    seconds: of all turns together."""

    loss: Series = Series()
    validation: Series = Series()
    gradient_norm: Series = Series()
    rates: tuple[Series, ...] = ()
    seconds: float = 0.0


def read_log(path: Path) -> RunLog:
    """A last line that a kill cut off does not count.

    Raises:
        BadLog: names the line that is none.
        OSError: as of the file.
    """
    tables: dict[str, dict[int, dict[str, Any]]] = {}
    seconds = turn = 0.0
    latest = 0
    for line in _lines(path):
        step = line["step"]
        if step < latest:  # done again
            tables = {event: {s: row for s, row in table.items() if s < step} for event, table in tables.items()}
        latest = step
        tables.setdefault(str(line.get("event", "step")), {})[step] = line
        now = float(line.get("seconds", turn))
        seconds, turn = (seconds if now >= turn else seconds + turn), now
    steps, checks = tables.get("step", {}), _alike(tables.get("validation", {}))
    rates = {step: {str(at): rate for at, rate in enumerate(row.get("rates", ()))} for step, row in steps.items()}
    groups = sorted({group for row in rates.values() for group in row})
    return RunLog(
        _series(steps, "loss"),
        _series(checks, "loss"),
        _series(steps, "gradient_norm"),
        tuple(_series(rates, group) for group in groups),
        seconds + turn,
    )


def _alike(checks: Mapping[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Validations that are measured as the last one is."""
    measures = [row.get("measure") for _, row in sorted(checks.items())]
    return {step: row for step, row in checks.items() if row.get("measure") == measures[-1]}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    *whole, _cut = path.read_bytes().split(b"\n")
    for number, raw in enumerate(whole, 1):
        try:
            line: Any = json.loads(raw)
        except ValueError:
            line = None
        if not isinstance(line, dict) or type(line.get("step")) is not int:
            raise BadLog(f"{path}, line {number}: got {raw[:80]!r}, expected a JSON object with a whole number as step")
        yield line


def _series(rows: Mapping[int, Mapping[str, Any]], name: str) -> Series:
    found = [(step, row.get(name)) for step, row in sorted(rows.items())]
    kept = [(step, float(value)) for step, value in found if isinstance(value, int | float) and math.isfinite(value)]
    return Series(tuple(step for step, _ in kept), tuple(value for _, value in kept))
