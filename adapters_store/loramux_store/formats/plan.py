"""All that is to be known of a file before its factors are touched.

Takes a Container, the options and the layouts; gives a Plan: which tensors become the rank rows of
which module, with what scale, and the accept report. Knows no tensor values but the scalars.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from loramux_store.errors import Refused
from loramux_store.formats.detect import Choice, choose
from loramux_store.formats.read import Contents, RawModule, read_contents
from loramux_store.formats.scaling import Scaling
from loramux_store.header import Container
from loramux_store.layout import Layout, ModuleSpec
from loramux_store.record import AcceptReport, InterpretOptions, MatchedModule

__all__ = ["Plan", "PlannedModule", "make_plan"]


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """One module, with its tensors in the file."""

    path: str
    spec: ModuleSpec
    raw: RawModule
    scale: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What convert writes, and what is reported."""

    container: Container
    layout: Layout
    modules: tuple[PlannedModule, ...]
    report: AcceptReport


def make_plan(
    container: Container,
    options: InterpretOptions,
    layouts: Iterable[Layout],
    wanted: Layout | None = None,
) -> Plan:
    """Read the file's names and shapes; refuse what cannot be applied exactly."""
    contents = read_contents(container)
    choice = choose(contents.modules, layouts, container.metadata, wanted)
    if not choice.matched:
        raise Refused("family_unknown", "the file touches no module")
    scaling = Scaling(options, container.metadata)
    with container.path.open("rb") as handle:
        scales = {path: scaling.of(handle, raw, path) for path, raw in choice.matched.items()}
    report = _report(contents, choice, scales, scaling.finish())
    modules = tuple(
        PlannedModule(path, choice.layout.modules[path], raw, scales[path][1]) for path, raw in choice.matched.items()
    )
    return Plan(container, choice.layout, modules, report)


def _report(
    contents: Contents,
    choice: Choice,
    scales: Mapping[str, tuple[float, float]],
    warnings: tuple[str, ...],
) -> AcceptReport:
    matched = tuple(
        MatchedModule(path, choice.layout.modules[path].kind, raw.rank, *scales[path])
        for path, raw in choice.matched.items()
    )
    ignored = (*contents.ignored, *choice.ignored)
    if ignored:
        warnings = (*warnings, f"ignored: {len(ignored)} tensors, among them {ignored[0][0]}")
    return AcceptReport(
        layout_name=choice.layout.name,
        layout_digest=choice.layout.digest,
        evidence=choice.evidence,
        family=contents.family,
        matched=matched,
        ignored=ignored,
        warnings=(*choice.warnings, *warnings),
    )
