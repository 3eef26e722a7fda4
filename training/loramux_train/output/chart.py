"""Curves as inline SVG geometry.

Takes Series; gives a Chart: polylines and ticks in the pixels of a fixed canvas, for a template to write down. Knows no
HTML.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loramux_train.output.run_log import Series

__all__ = ["HEIGHT", "WIDTH", "Chart", "Curve", "Tick", "chart", "smoothed"]

WIDTH, HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 12, 28
_POINTS = 600  # more than the canvas shows


@dataclass(frozen=True, slots=True)
class Curve:
    """colour: of CSS; faint: behind the others; points: of a polyline, in pixels; at: where a single value stands."""

    name: str
    colour: str
    faint: bool
    points: str
    at: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Tick:
    """Pixels along its axis, and what stands there."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """What a template draws."""

    title: str
    curves: tuple[Curve, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def chart(title: str, lines: Sequence[tuple[str, str, bool, Series]]) -> Chart | None:
    """Of (name, colour, faint, series); None where there is nothing to show."""
    shown = [line for line in lines if line[3].steps]
    if not shown:
        return None
    steps = [step for *_, series in shown for step in series.steps]
    values = [value for *_, series in shown for value in series.values]
    x = _scale(min(steps), max(steps), _LEFT, WIDTH - _RIGHT)
    low, high = _bounds(min(values), max(values))
    y = _scale(low, high, HEIGHT - _BOTTOM, _TOP)
    return Chart(
        title,
        tuple(_curve(name, colour, faint, thinned(series), x, y) for name, colour, faint, series in shown),
        tuple(Tick(x(at), f"{at:g}") for at in _ticks(min(steps), max(steps)) if at == int(at)),
        tuple(Tick(y(at), f"{at:.3g}") for at in _ticks(low, high)),
    )


def smoothed(series: Series) -> Series:
    """A running mean over a twentieth of the run; the first values' weights count only what there is."""
    keep = 1 - 1 / max(1.0, len(series.values) / 20)
    total = weight = 0.0
    values: list[float] = []
    for value in series.values:
        total, weight = keep * total + value, keep * weight + 1
        values.append(total / weight)
    return Series(series.steps, tuple(values))


def thinned(series: Series) -> Series:
    """At most as many points as can be seen, each the mean of its neighbours'."""
    every = -(-len(series.steps) // _POINTS)
    groups = range(0, len(series.steps), every)
    means = [series.values[at : at + every] for at in groups]
    steps = [series.steps[at : at + every] for at in groups]
    return Series(tuple(group[-1] for group in steps), tuple(sum(group) / len(group) for group in means))


def _curve(
    name: str, colour: str, faint: bool, series: Series, x: Callable[[float], float], y: Callable[[float], float]
) -> Curve:
    places = [(round(x(step), 1), round(y(value), 1)) for step, value in zip(series.steps, series.values, strict=True)]
    points = " ".join(f"{across},{up}" for across, up in places)
    return Curve(name, colour, faint, points, places[0] if len(places) == 1 else None)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _bounds(low: float, high: float) -> tuple[float, float]:
    """With a little room, and from zero where that is near."""
    room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < (high - low) else low - room), high + room


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers."""
    span = (high - low) or 1.0
    unit = 10 ** math.floor(math.log10(span / 4))
    pace = next(unit * factor for factor in (10, 5, 2, 1) if span / (unit * factor) >= 3.999 or factor == 1)
    first = math.ceil(low / pace - 1e-9)
    return [n * pace for n in range(first, math.floor(high / pace + 1e-9) + 1)]
