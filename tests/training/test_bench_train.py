"""The trainer's benchmark runs its sides in processes of their own and refuses to compare what differs."""

import pytest

from loramux_train.bench import steps
from loramux_train.bench.side import SIDES


def test_sides_compute_the_same_and_are_told_in_rows() -> None:
    """Each side's process checks its loss and parameters against ours before it steps, and that all factors moved."""
    rows = steps.measure_at(rounds=1, steps=2)
    assert all(value > 0 for _, value, _, _ in rows)
    bounds = {name.partition(": ")[2]: bound for name, _, _, bound in rows}
    assert bounds["steps a second, ours / plain"] == ">=1.2"
    assert bounds["peak memory, ours / plain"] == "<=1"
    assert {f"steps a second, {side}" for side in SIDES} <= bounds.keys()


@pytest.mark.parametrize("other", [{"loss": 0.51, "parameters": 7}, {"loss": 0.5, "parameters": 8}])
def test_sides_that_differ_are_not_compared(other: dict[str, float]) -> None:
    ours = {"loss": 0.5, "parameters": 7}
    steps.check({"ours": ours, "plain": ours})
    with pytest.raises(RuntimeError, match="plain"):
        steps.check({"ours": ours, "plain": other})


def test_a_side_that_fails_says_how_to_see_why() -> None:
    side = steps.Side("plain", "/nowhere")
    try:
        with pytest.raises(RuntimeError, match="side 'plain' FOLDER says why"):
            side.heard()
    finally:
        side.stop()
