"""All that is to be known of a file before its factors are touched.

Takes a Container, the options and the layouts; gives a Plan: which tensors become the rank rows or the side operation
of which module, with what scale, which are vectors of which embedding, and the accept report. Knows no tensor values
but the scalars.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from loramux_store.compiled_file import CompiledModule
from loramux_store.formats.bundled import is_bundled, plan_bundled
from loramux_store.formats.detect import Choice, choose
from loramux_store.formats.fit import magnitude_axis
from loramux_store.formats.foreign import refuse_families
from loramux_store.formats.operation import Operation, operation_of
from loramux_store.formats.read import Contents, RawModule, read_contents
from loramux_store.formats.scaling import Scaling
from loramux_store.formats.tokens import PlannedEmbedding, warned_of
from loramux_store.header import Container
from loramux_store.layout import Layout, ModuleSpec
from loramux_store.record import AcceptReport, Embedding, InterpretOptions, MatchedModule

__all__ = ["Plan", "PlannedModule", "make_plan"]


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """One module, with its tensors in the file."""

    path: str
    spec: ModuleSpec
    raw: RawModule
    operation: Operation
    alpha: float
    scale: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What convert writes, and what is reported."""

    container: Container
    layout: Layout
    modules: tuple[PlannedModule, ...]
    embeddings: tuple[PlannedEmbedding, ...]
    report: AcceptReport

    @property
    def compiled(self) -> tuple[list[CompiledModule], list[Embedding]]:
        """What the compiled file will hold."""
        modules = [
            CompiledModule(m.path, m.operation.rank, m.scale, m.operation.axis, m.operation.parts) for m in self.modules
        ]
        return modules, [planned.embedding for planned in self.embeddings]


def make_plan(
    container: Container,
    options: InterpretOptions,
    layouts: Iterable[Layout],
    wanted: Layout | None = None,
    recorded: Mapping[str, str] | None = None,
    base: Layout | None = None,
) -> Plan:
    """Read the file's names and shapes; refuse what cannot be applied exactly.

    Embeddings that came with it are passed over where the options say so. recorded: of a version that there is, what
    each module is applied as; base: the layout of the base that runs here.
    """
    beside = {name: entry for name, entry in container.tensors.items() if is_bundled(name)}
    rest = {name: entry for name, entry in container.tensors.items() if name not in beside}
    refuse_families(sorted(rest))
    scaling = Scaling(options, container.metadata)
    contents = read_contents(rest, scaling.beside)
    choice = choose(contents.modules, layouts, container.metadata, wanted, base)
    with container.path.open("rb") as handle:
        modules = tuple(
            _planned(path, raw, choice, scaling.of(handle, raw, path), (recorded or {}).get(path))
            for path, raw in choice.matched.items()
        )
    decomposed = any(module.operation.axis for module in modules)
    embeddings = plan_bundled(beside, choice.layout) if options.bundled else ()
    report = _report(contents, choice, modules, embeddings, scaling.finish(decomposed=decomposed))
    return Plan(container, choice.layout, modules, embeddings, report)


def _planned(
    path: str, raw: RawModule, choice: Choice, scale: tuple[float, float], recorded: str | None
) -> PlannedModule:
    spec = choice.layout.targets[path]
    as_rows = None if recorded is None else recorded.startswith("rows")
    return PlannedModule(path, spec, raw, operation_of(raw, spec, magnitude_axis(raw, spec), as_rows=as_rows), *scale)


def _report(
    contents: Contents,
    choice: Choice,
    modules: tuple[PlannedModule, ...],
    embeddings: tuple[PlannedEmbedding, ...],
    warnings: tuple[str, ...],
) -> AcceptReport:
    matched = tuple(
        MatchedModule(
            module.path,
            module.spec.kind,
            module.operation.rank,
            module.alpha,
            module.scale,
            module.raw.kind,
            module.operation.text,
            module.operation.axis,
            module.operation.side_values,
        )
        for module in modules
    )
    useless = tuple(useless for module in modules for useless in _useless(module.raw))
    ignored = (*contents.ignored, *choice.ignored, *useless)
    if ignored:
        warnings = (*warnings, f"ignored: {len(ignored)} tensors, among them {ignored[0][0]}")
    return AcceptReport(
        layout_name=choice.layout.name,
        layout_digest=choice.layout.digest,
        evidence=choice.evidence,
        family=contents.family,
        matched=matched,
        ignored=ignored,
        warnings=(*choice.warnings, *warnings, *warned_of(each.embedding for each in embeddings)),
        bundled=tuple(each.embedding for each in embeddings),
    )


def _useless(raw: RawModule) -> Iterator[tuple[str, str]]:
    """Scalars beside a delta that they do not scale, with the reason."""
    reasons = {
        "alpha": (("full", "norm", "bias"), "a full difference has no rank to divide it by"),
        "scale": (("norm", "bias"), "differences of biases and normalisations are taken as they are"),
    }
    for role, (kinds, why) in reasons.items():
        if role in raw.tensors and raw.kind in kinds:
            yield raw.tensors[role].name, why
