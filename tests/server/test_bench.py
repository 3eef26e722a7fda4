"""The benchmarks run, check what they compare, and tell it in one form."""

import json
import subprocess
import sys

import pytest

from loramux_server.bench.harness import Row, ratio


@pytest.mark.parametrize(
    "value,bound,holds",
    [(1.0, "<=1.05", True), (1.1, "<=1.05", False), (2.0, ">=2", True), (1.9, ">=2", False), (9, "", True)],
)
def test_bounds(value: float, bound: str, holds: bool) -> None:
    assert Row("x", value, "x", bound).holds is holds


def test_a_ratio_runs_both_sides_in_turn() -> None:
    calls: list[str] = []
    assert ratio(lambda: calls.append("a"), lambda: calls.append("b"), repeats=5) > 0
    assert calls == ["a", "b"] * 6


@pytest.mark.parametrize("name", ["kernels", "overhead", pytest.param("store", marks=pytest.mark.long), "engine"])
def test_one_json_object(name: str) -> None:
    command = [sys.executable, "-m", "loramux_client.cli", "bench", name, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told.keys() == {"machine", "versions", "command", "rows"}
    assert all(row.keys() == {"name", "value", "unit", "bound", "holds"} and row["value"] > 0 for row in told["rows"])
