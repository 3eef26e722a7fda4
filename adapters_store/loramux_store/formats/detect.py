"""Which layout a file was made for.

Takes the modules of a file and the layouts there are; gives the one reading that fits by every
name and shape, with the evidence, or Refused: what is wrong with the nearest, or which ones are
equally possible. Ties are broken by the base that runs, then by a known family before some other base's layout, then by
metadata. Knows no tensor values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from loramux_store.errors import Refused
from loramux_store.formats.fit import Misfit, fits_exactly, misfit
from loramux_store.formats.naming import name_table
from loramux_store.formats.read import RawModule
from loramux_store.formats.refiner import refiner
from loramux_store.layout import KNOWN_NAMES, Layout, known_layout

__all__ = ["Choice", "choose"]


@dataclass(slots=True)
class _Reading:
    """A file read as one layout, its unprefixed names as one component."""

    layout: Layout
    bare: str | None
    matched: dict[str, RawModule] = field(default_factory=dict[str, RawModule])
    extra: list[RawModule] = field(default_factory=list[RawModule])
    unknown: list[RawModule] = field(default_factory=list[RawModule])
    misfits: list[tuple[str, Misfit]] = field(default_factory=list[tuple[str, Misfit]])
    twice: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    exact: bool = True
    own_names: bool = True

    @property
    def fits(self) -> bool:
        return bool(self.matched) and not (self.unknown or self.misfits or self.twice)

    @property
    def name(self) -> str:
        return f"{self.layout.name} {self.bare}" if self.bare else self.layout.name


@dataclass(frozen=True, slots=True)
class Choice:
    """The layout, and the module of each path."""

    layout: Layout
    matched: Mapping[str, RawModule]
    ignored: tuple[tuple[str, str], ...]
    evidence: tuple[str, ...]
    warnings: tuple[str, ...]


def choose(
    modules: Sequence[RawModule],
    layouts: Iterable[Layout],
    metadata: Mapping[str, str],
    wanted: Layout | None = None,
    base: Layout | None = None,
) -> Choice:
    """The one layout the modules fit; `wanted` is what the user says it is, `base` that of the base that runs here."""
    by_digest = {layout.digest: layout for layout in reversed(list(layouts))}
    readings = [
        reading
        for layout in by_digest.values()
        for reading in _readings(modules, layout, bool(wanted and layout == wanted))
    ]
    fitting = [reading for reading in readings if reading.fits]
    if wanted:
        fitting = _wanted(modules, fitting, readings, wanted)
    if not fitting:
        raise _refiner_fault(modules) or _nearest_fault(readings, readings)
    exact = [reading for reading in fitting if reading.exact] or fitting
    chosen, how = _one(exact, metadata, base)
    evidence = [f"all {len(chosen.matched)} modules fit {chosen.name} by name and shape", *how]
    evidence += _differences(readings, chosen)
    warnings = _contradiction(metadata, chosen)
    ignored = tuple(
        (entry.name, "a text projection, which this encoder does not have")
        for raw in chosen.extra
        for entry in raw.tensors.values()
    )
    return Choice(chosen.layout, chosen.matched, ignored, tuple(evidence), warnings)


def _readings(modules: Sequence[RawModule], layout: Layout, wanted: bool) -> list[_Reading]:
    """One reading, or one for each component where some names carry no component."""
    table = name_table(layout)
    plain = _read(modules, layout, None)
    if not plain.unknown:
        return [plain]
    bare = [
        _read(modules, layout, component)
        for component in layout.components
        if any(table.path(raw.stem, component) for raw in plain.unknown)
    ]
    return bare or [plain]


def _read(modules: Sequence[RawModule], layout: Layout, bare: str | None) -> _Reading:
    table = name_table(layout)
    reading = _Reading(layout, bare)
    for raw in modules:
        path = table.path(raw.stem, bare)
        if path is None:
            loose = reading.extra if raw.stem.endswith("text_projection") else reading.unknown
            loose.append(raw)
        elif path in reading.matched:
            reading.twice.append((path, raw.stem))
        elif fault := misfit(raw, layout.targets[path]):
            reading.misfits.append((path, fault))
        else:
            reading.matched[path] = raw
            reading.own_names = reading.own_names and not table.borrows(raw.stem)
            reading.exact = reading.exact and fits_exactly(raw, layout.targets[path])
    reading.matched = dict(sorted(reading.matched.items()))
    return reading


def _wanted(
    modules: Sequence[RawModule], fitting: list[_Reading], readings: list[_Reading], wanted: Layout
) -> list[_Reading]:
    mine = [reading for reading in fitting if reading.layout.digest == wanted.digest]
    if mine or not fitting:
        if not mine:
            own = [reading for reading in readings if reading.layout.digest == wanted.digest]
            raise _refiner_fault(modules) or _nearest_fault(own, readings)
        return mine
    got = ", ".join(sorted({reading.layout.name for reading in fitting}))
    raise Refused(
        "family_mismatch",
        f"the file is for {got}, not for {wanted.name}",
        {"expected": wanted.name, "got": got, "key": _first_key(fitting)},
    )


def _one(fitting: list[_Reading], metadata: Mapping[str, str], base: Layout | None) -> tuple[_Reading, list[str]]:
    if len(fitting) == 1:
        return fitting[0], []
    names = ", ".join(sorted(reading.name for reading in fitting))
    hint, source = _hint(metadata)
    nearer, why = _nearer(fitting, hint, base)
    hinted = [reading for reading in nearer if reading.layout.name == hint]
    own = [reading for reading in nearer if reading.own_names]
    two = "lora_te1_ is the first of two text encoders"
    for left, because in ((nearer, why), (hinted, f"{source} says {hint}"), (own, two)):
        if len(left) == 1:
            return left[0], [f"{names} are equally possible; {because}"]
    raise Refused(
        "family_ambiguous",
        f"the file fits {names} equally well: say which layout it is for",
        {"candidates": names, "key": _first_key(fitting)},
    )


def _first_key(fitting: list[_Reading]) -> str:
    """What the first module is called in the file."""
    return next(iter(fitting[0].matched.values())).stem


def _nearer(fitting: list[_Reading], hint: str, base: Layout | None) -> tuple[list[_Reading], str]:
    """Those that go before layouts of single bases, which a store knows because such a base ran on it once, and why.

    Of these only that of the base that runs goes before all, unless metadata say another family."""
    own = [reading for reading in fitting if base and reading.layout.digest == base.digest]
    said = next((reading.layout for reading in fitting if reading.layout.name == hint), base)
    if base and own and base.name not in KNOWN_NAMES and said and said.text_widths == base.text_widths:
        return own, f"{base.name} is the base's"
    known = [reading for reading in fitting if reading.layout.name in KNOWN_NAMES]
    return known or fitting, "it is a known family, not a single base's layout"


def _hint(metadata: Mapping[str, str]) -> tuple[str, str]:
    """(layout name, where it is said) by what a trainer wrote down."""
    version = metadata.get("ss_base_model_version", "").lower()
    architecture = metadata.get("modelspec.architecture", "").lower()
    rules = (
        ("ss_base_model_version", version, (("sdxl", "sdxl"), ("sd_v2", "sd2"), ("sd_v1", "sd1"))),
        (
            "modelspec.architecture",
            architecture,
            (
                ("stable-diffusion-xl", "sdxl"),
                ("stable-diffusion-v2", "sd2"),
                ("stable-diffusion-v1", "sd1"),
            ),
        ),
        ("ss_v2", metadata.get("ss_v2", "").lower(), (("true", "sd2"), ("false", "sd1"))),
    )
    for key, value, words in rules:
        for word, name in words:
            if value.startswith(word):
                return name, f"{key}={metadata[key][:60]!r}"
    return "", ""


def _contradiction(metadata: Mapping[str, str], chosen: _Reading) -> tuple[str, ...]:
    hint, source = _hint(metadata)
    # ss_v2=False is also what SDXL files say: a hint among sd1 and sd2, no contradiction
    if not hint or source.startswith("ss_v2") or chosen.layout.name in (hint, ""):
        return ()
    if chosen.layout.name not in ("sd1", "sd2", "sdxl"):
        return ()
    return (f"metadata_contradicts_shapes: {source} says {hint}, the shapes are {chosen.layout.name}'s",)


def _differences(readings: list[_Reading], chosen: _Reading) -> list[str]:
    """Why each other layout is not the one."""
    lines: dict[str, str] = {}
    for reading in readings:
        if reading.layout.digest == chosen.layout.digest or reading.fits:
            continue
        if reading.unknown:
            text = f"it has no module {reading.unknown[0].stem}"
        elif reading.misfits:
            path, fault = reading.misfits[0]
            text = f"{path} {fault.role} is {list(fault.expected)} there, here {list(fault.got)}"
        else:
            continue
        lines.setdefault(reading.layout.name, f"not {reading.layout.name}: {text}")
    return list(lines.values())


def _refiner_fault(modules: Sequence[RawModule]) -> Refused | None:
    """SDXL's refiner has the names of SD1's blocks and of SDXL's depths, in widths of its own."""
    if not any(reading.fits for reading in _readings(modules, refiner(), wanted=False)):
        return None
    key = next(iter(modules[0].tensors.values())).name
    return Refused(
        "unsupported_family:sdxl_refiner",
        f"all {len(modules)} modules, {key!r} among them, fit SDXL's refiner; accepted are SD1, SD2 and SDXL",
        {"key": key, "family": "sdxl_refiner"},
    )


def _nearest_fault(readings: list[_Reading], all_readings: list[_Reading]) -> Refused:
    """What is wrong with the reading that fits best; hints come from all."""
    nearest = max(
        readings,
        key=lambda reading: (
            len(reading.matched),
            len(reading.misfits) + len(reading.twice),
            -len(reading.unknown),
            reading.layout.digest != known_layout("builtin").digest,  # few files are for it
        ),
    )
    if nearest.twice and not nearest.unknown and not nearest.misfits:
        path, stem = nearest.twice[0]
        return Refused(
            "duplicate_module",
            f"{path} is given twice, the second time as {stem!r}",
            {"module": path, "key": stem, "layout": nearest.name},
        )
    if nearest.misfits and (nearest.matched or not nearest.unknown):
        return _shape_fault(nearest, all_readings)
    stems = [raw.stem for raw in nearest.unknown or nearest.extra]
    listed = ", ".join(repr(stem[:120]) for stem in stems[:5])
    more = f" and {len(stems) - 5} more" if len(stems) > 5 else ""
    known = bool(nearest.matched or nearest.misfits)
    return Refused(
        "unknown_keys" if known else "family_unknown",
        (f"nearest is {nearest.name}, which has no" if known else "no known model has") + f" {listed}{more}",
        {"keys": listed, "key": stems[0], "count": str(len(stems)), "layout": nearest.name},
    )


def _shape_fault(nearest: _Reading, readings: list[_Reading]) -> Refused:
    path, fault = nearest.misfits[0]
    hint = _other_encoder(path, fault, readings)
    return Refused(
        "shape_mismatch",
        f"nearest is {nearest.name}: {fault.key!r} of {path} has shape "
        f"{list(fault.got)}, expected {list(fault.expected)}{hint}",
        {
            "module": path,
            "key": fault.key,
            "expected": str(list(fault.expected)),
            "got": str(list(fault.got)),
            "layout": nearest.name,
        },
    )


def _other_encoder(path: str, fault: Misfit, readings: list[_Reading]) -> str:
    """A second encoder's weights under the first one's prefix (diffusers#8955)."""
    component, _, tail = path.partition(".")
    other = {"text_encoder": "text_encoder_2", "text_encoder_2": "text_encoder"}.get(component)
    for reading in readings:
        spec = reading.layout.modules.get(f"{other}.{tail}")
        axis = 1 if fault.role == "down" else 0
        if spec and fault.role in ("down", "up") and spec.shape[axis] == fault.got[axis]:
            return f"; it looks like {other} of {reading.layout.name}"
    return ""
