"""What people are told of a metric, and all of them as a table, which docs/metrics.md holds.

Takes names, labels and meanings; gives text. It counts nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_UNITS = ("seconds", "bytes", "ratio")


@dataclass(frozen=True, slots=True)
class Described:
    """One metric. kind: counter, gauge or histogram; labels: each with its values, in words where they are many."""

    name: str
    kind: str
    text: str
    labels: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def unit(self) -> str:
        """By its name, as Prometheus has it; empty where it counts things."""
        last = self.name.removesuffix("_total").rpartition("_")[2]
        return last if last in _UNITS else ""


def table(metrics: Iterable[Described]) -> str:
    """Markdown, in order of names."""
    rows = [
        f"| `{each.name}` | {each.kind} | {each.unit} | {_told(each.labels)} | {each.text} |"
        for each in sorted(metrics, key=lambda metric: metric.name)
    ]
    return "\n".join(["| metric | type | unit | labels | is |", "|---|---|---|---|---|", *rows])


def _told(labels: Mapping[str, str]) -> str:
    return "; ".join(f"`{name}`: {values}" for name, values in labels.items())
