"""Which plan is fastest for each shape on the card here, and the lines of the dispatch table that say so.

Takes a clock (`card`, or a false one in tests) and the table's text; gives lines, text and rows. Only the table of
linear layers in 16 bits is tuned. It knows no request and, but for `measure`, no card.
"""

import datetime
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import torch

from loramux_kernels import R_CLASSES, class_of, default_impl
from loramux_kernels.triton import dispatch
from loramux_kernels.triton.dispatch import Call, GemmTile, Line, Plan
from loramux_server.bench import card, plans, shapes
from loramux_server.bench.harness import Row
from loramux_server.bench.layer import Compute, check, make_blends, make_layer
from loramux_server.bench.shapes import LayerShape

ROWS = (2, 16)
RANKS = ((16,), (16, 16, 16))
ROUNDS = 7
_BASE = "base"

Side = str | GemmTile | Plan
"""`base`: the vendor's product alone; a tile: Triton's product alone; a plan: with rank rows."""


@dataclass(frozen=True, slots=True)
class Point:
    """What is measured: a launch, batch rows, ranks of the blend's adapters, and the call that they make."""

    shape: LayerShape
    rows: int
    ranks: tuple[int, ...]
    call: Call


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of the vendor's product alone, of Triton's by tile, and of the plans that could run."""

    base: float
    plain: Mapping[GemmTile, float]
    plans: Mapping[Plan, float]

    @property
    def best(self) -> Plan:
        """The fastest plan."""
        return min(self.plans, key=lambda plan: self.plans[plan])


def points(layers: Sequence[LayerShape], rows: Sequence[int] = ROWS) -> list[Point]:
    """Every distinct call of the layers, launched one by one and q, k, v together."""
    found: dict[Call, Point] = {}
    for shape in (*layers, *shapes.stacked(layers)):
        for count in rows:
            for ranks in RANKS:
                width = class_of(sum(ranks), R_CLASSES, "total rank")
                call = Call("linear", 16, count * shape.tokens, shape.outputs, shape.k, width)
                found.setdefault(call, Point(shape, count, ranks, call))
    return [found[call] for call in sorted(found, key=_bounds)]


def tuned(arch: str, measured: Mapping[Call, Measured], where: str) -> list[Line]:
    """The fastest plan of each call as a line. Sorted by bounds, so that a call that was measured meets its own line
    first: no line before it has all four bounds at least as large. where: card, date and version."""
    lines: list[Line] = []
    for call in sorted(measured, key=_bounds):
        one = measured[call]
        evidence = f"measured {one.plans[one.best] * 1e6:.1f} us; base {one.base * 1e6:.1f} us (vendor); {where}"
        lines.append(Line(arch, 16, "linear", _bounds(call), one.best, evidence.replace(",", " ")))
    return lines


def rewritten(text: str, lines: Sequence[Line]) -> str:
    """The table with `lines` in place of those of their architecture that bound all four sizes of a 16-bit linear
    layer.

    Everything else stays byte for byte: comments, other architectures, and of this one the other operations and the
    lines that leave a size open, which come after the new ones and serve what was not measured. An architecture that
    was not listed took the lines of the newest older one, and gets copies of those.

    Raises:
        ValueError: where the table would have no line for calls that were not measured.
    """
    arch = lines[0].arch
    new = dispatch.write(lines).splitlines(keepends=True)[1:]
    old = text.splitlines(keepends=True)
    if all(_arch_of(line) != arch for line in old):
        source = _newest_older(arch, {_arch_of(line) for line in old})
        old += [arch + line[len(source) :] for line in old if source and _arch_of(line) == source]
    kept = [line for line in old if not (_arch_of(line) == arch and _replaced(line))]
    if not any(_arch_of(line) == arch and _cells(line)[1:7] == ["16", "linear", *"****"] for line in kept):
        raise ValueError(f"the table has no line without bounds for 16-bit linear layers of {arch} or an older one")
    before = next(number for number, line in enumerate(old) if _arch_of(line) == arch)  # none of these is replaced
    return "".join([*kept[:before], *new, *kept[before:]])


def possible() -> bool:
    """Whether there is a card that the kernels run on."""
    return torch.cuda.is_available() and default_impl(torch.device("cuda")) == "triton"


def measure() -> list[Row]:
    """Measures this card, rewrites the table and tells what was found."""
    device = torch.device("cuda", torch.cuda.current_device())
    limit = card.shared_memory_limit(device)
    measured: dict[Call, Measured] = {}
    rows: list[Row] = []
    for point in points(shapes.SHAPES):
        measured[point.call] = one = measure_point(point, device, limit)
        rows += told(point, one)
        print(f"{len(measured)}: {rows[-1].name} {rows[-1].value:.3f}", file=sys.stderr)
    arch = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    where = f"{torch.cuda.get_device_name(device)}; {date}; triton {version('triton')}"
    dispatch.TABLE.write_text(rewritten(dispatch.TABLE.read_text(), tuned(arch, measured, where)))
    return rows


@torch.inference_mode()
def measure_point(point: Point, device: torch.device, shared_memory: int) -> Measured:
    """By the clock of `card`. Plans that the card refuses are left out; the others are checked first."""
    usable = plans.candidates(point.call, point.shape.tokens, shared_memory)
    tiles = plans.gemm_tiles(point.call, point.shape.tokens, shared_memory)
    refused: list[Plan] = []
    build = partial(_sides, point, device, tiles, usable, refused)
    taken = card.time_sides(build, card.copies(point.shape, point.rows, device), ROUNDS)
    return Measured(
        taken[_BASE],
        {side: seconds for side, seconds in taken.items() if isinstance(side, GemmTile)},
        {side: seconds for side, seconds in taken.items() if isinstance(side, Plan)},
    )


def told(point: Point, measured: Measured) -> list[Row]:
    """Triton's product alone, and the fastest plan of each variant, over the vendor's product alone."""
    call = point.call
    what = f"linear {call.m}x{call.k}x{call.n} in {point.rows} rows"
    rows: list[Row] = []
    if point.ranks == RANKS[0] and measured.plain:
        tile, seconds = min(measured.plain.items(), key=lambda item: item[1])
        name = f"{what}: Triton GEMM {tile.block_m}x{tile.block_n}x{tile.block_k} / base"
        rows.append(Row(name, seconds / measured.base, "x"))
    for variant in plans.variants(call):
        seconds = min((s for plan, s in measured.plans.items() if plan.variant == variant), default=None)
        if seconds is not None:
            rows.append(Row(f"{what}, R class {call.r}: {variant} / base", seconds / measured.base, "x"))
    return rows


def _sides(
    point: Point,
    device: torch.device,
    tiles: Sequence[GemmTile],
    usable: Sequence[Plan],
    refused: list[Plan],
    checked: bool,
) -> dict[Side, Compute]:
    layer = make_layer(point.shape, point.rows, torch.float16, device)
    (blend,) = make_blends(point.rows, [point.ranks], device)
    computes = {plan: card.planned(layer, blend, plan) for plan in usable}
    if checked:
        refused += [plan for plan, compute in computes.items() if not _runs(compute)]
        check(layer, blend, {str(plan): compute for plan, compute in computes.items() if plan not in refused})
    sides: dict[Side, Compute] = {_BASE: layer.base}
    sides |= {tile: card.plain_gemm(layer, blend, tile) for tile in tiles}
    return sides | {plan: compute for plan, compute in computes.items() if plan not in refused}


def _runs(compute: Compute) -> bool:
    """Whether the card has the shared memory and registers for it."""
    from triton.runtime.errors import OutOfResources

    try:
        compute()
    except OutOfResources:
        return False
    return True


def _bounds(call: Call) -> tuple[int, int, int, int]:
    return call.m, call.n, call.k, call.r


def _cells(line: str) -> list[str]:
    return line.rstrip("\r\n").split(",")


def _arch_of(line: str) -> str:
    """The first cell; empty for comments and the heading."""
    first = _cells(line)[0]
    return "" if line.startswith("#") or first == dispatch.COLUMNS[0] else first


def _replaced(line: str) -> bool:
    cells = _cells(line)
    return cells[1:3] == ["16", "linear"] and "*" not in cells[3:7]


def _newest_older(arch: str, known: set[str]) -> str:
    """The architecture whose lines `dispatch` gives to an unlisted one; empty where there is none."""
    like = dispatch.LIKE.get(arch, arch)
    if like in known:
        return like
    older = [name for name in known if name.startswith("sm_") and int(name[3:]) < int(like[3:])]
    return max(older, key=lambda name: int(name[3:]), default="")
