"""Which variant and which tiles an operation runs with: dispatch.csv, read from top to bottom.

Takes an architecture and the sizes of a call; gives the plan of the first line that fits. It knows no
tensors and no triton. The numbers in the columns m, n, k and r are upper bounds, `*` is none:

    arch      sm_80 and so on, or `interpreter`; a card without lines takes those of its like or of the newest
              older one
    bits      width of a value: 16 (fp16 and bf16) or 32
    op        linear (also q, k, v in one: n is then their sum) or conv (k is Cin, m output pixels)
    m         activations of all batch rows together
    r         R class
    variant   split, single, vendor (see `launch`) or conv
    tile      BLOCK_M x BLOCK_N x BLOCK_K, rank rows a step, warps, stages; without BLOCK_K and stages where
              the vendor's library makes the base product
    shrink    BLOCK_M x BLOCK_K, rank rows, warps, stages of the shrink before it
    evidence  `predicted`, or what was measured where; `loramux bench tune` writes it
"""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LIKE = {"sm_120": "sm_89", "sm_121": "sm_89"}  # 99 KiB of shared memory, where the older sm_90 has 227
TABLE = Path(__file__).with_name("dispatch.csv")
SINGLE_WIDTH = 64  # R class up to which S of a tile stays in registers beside the tile of y
COLUMNS = ("arch", "bits", "op", "m", "n", "k", "r", "variant", "tile", "shrink", "evidence")


@dataclass(frozen=True, slots=True)
class ShrinkTile:
    """Tile of S, warps and pipeline stages."""

    block_m: int
    block_k: int
    block_r: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class GemmTile:
    """Tile of y, rank rows a step of the loop over them, warps and pipeline stages."""

    block_m: int
    block_n: int
    block_k: int
    block_r: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class ExpandTile:
    """Tile of y, rank rows a step of the loop over them, and warps."""

    block_m: int
    block_n: int
    block_r: int
    warps: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A variant with its tiles. shrink: None in a single pass."""

    variant: str
    tile: GemmTile | ExpandTile
    shrink: ShrinkTile | None


@dataclass(frozen=True, slots=True)
class Call:
    """The sizes of a call. m: activations of all batch rows; scaled: whether outputs, inputs are scaled."""

    op: str
    bits: int
    m: int
    n: int
    k: int
    r: int
    scaled_outputs: bool = False
    scaled_inputs: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table; None is no bound."""

    arch: str
    bits: int
    op: str
    bounds: tuple[int | None, int | None, int | None, int | None]
    plan: Plan
    evidence: str

    def fits(self, call: Call) -> bool:
        """Whether the line is for such a call and its variant can do it."""
        sizes = (call.m, call.n, call.k, call.r)
        return (
            (self.op, self.bits) == (call.op, call.bits)
            and all(bound is None or size <= bound for size, bound in zip(sizes, self.bounds, strict=True))
            and not (self.plan.variant == "single" and (call.scaled_outputs or call.scaled_inputs))
            and not (self.plan.variant == "vendor" and call.scaled_inputs)
        )


def plan_for(arch: str, call: Call) -> Plan:
    """Plan of the first line that fits.

    Raises:
        LookupError: where no line does.
    """
    for line in _lines_of(_listed(arch)):
        if line.fits(call):
            return line.plan
    raise LookupError(f"{TABLE.name} has no line for {call} on {arch}")


plan_for = cache(plan_for)


@cache
def table() -> tuple[Line, ...]:
    """All lines."""
    return tuple(read(TABLE.read_text().splitlines()))


def read(lines: Iterable[str]) -> list[Line]:
    """Lines of a table.

    Raises:
        ValueError: for a line that cannot be read; names it.
    """
    return [_line(row) for row in csv.DictReader(line for line in lines if not line.startswith("#"))]


def write(lines: Sequence[Line]) -> str:
    """The table as text."""
    rows = [",".join(COLUMNS)]
    for line in lines:
        bounds = ["*" if bound is None else str(bound) for bound in line.bounds]
        shrink = _spelled(line.plan.shrink) if line.plan.shrink else "-"
        cells = (line.arch, str(line.bits), line.op, *bounds, line.plan.variant, _spelled(line.plan.tile), shrink)
        rows.append(",".join((*cells, line.evidence)))
    return "\n".join(rows) + "\n"


@cache
def _lines_of(arch: str) -> tuple[Line, ...]:
    return tuple(line for line in table() if line.arch == arch)


def _listed(arch: str) -> str:
    """The architecture itself where it is listed, else its like or the newest older one."""
    known = {line.arch for line in table()}
    arch = arch if arch in known else LIKE.get(arch, arch)
    if arch in known or not arch.startswith("sm_"):
        return arch
    older = [int(name[3:]) for name in known if name.startswith("sm_") and int(name[3:]) < int(arch[3:])]
    return f"sm_{max(older)}" if older else arch


def _line(row: dict[str, str]) -> Line:
    m, n, k, r = (None if row[name] == "*" else int(row[name]) for name in ("m", "n", "k", "r"))
    tile = _gemm_tile(row["tile"]) if row["variant"] in ("split", "single") else _expand_tile(row["tile"])
    shrink = None if row["shrink"] == "-" else _shrink_tile(row["shrink"])
    if shrink and shrink.block_r < tile.block_r:
        raise ValueError(
            f"{row}: a shrink tile of fewer rank rows than a step of the expanding loop leaves S unwritten"
        )
    if row["variant"] == "single" and (r is None or r > SINGLE_WIDTH):
        raise ValueError(f"{row}: a single pass holds at most {SINGLE_WIDTH} rank rows")
    return Line(
        row["arch"],
        int(row["bits"]),
        row["op"],
        (m, n, k, r),
        Plan(row["variant"], tile, shrink),
        row["evidence"],
    )


def _gemm_tile(text: str) -> GemmTile:
    return GemmTile(*_numbers(r"(\d+)x(\d+)x(\d+)r(\d+)w(\d+)s(\d+)", text))


def _expand_tile(text: str) -> ExpandTile:
    return ExpandTile(*_numbers(r"(\d+)x(\d+)r(\d+)w(\d+)", text))


def _shrink_tile(text: str) -> ShrinkTile:
    return ShrinkTile(*_numbers(r"(\d+)x(\d+)r(\d+)w(\d+)s(\d+)", text))


def _numbers(pattern: str, text: str) -> tuple[int, ...]:
    found = re.fullmatch(pattern, text)
    if not found:
        raise ValueError(f"tile {text!r}, expected {pattern}")
    return tuple(map(int, found.groups()))


def _spelled(tile: GemmTile | ExpandTile | ShrinkTile) -> str:
    match tile:
        case GemmTile():
            return f"{tile.block_m}x{tile.block_n}x{tile.block_k}r{tile.block_r}w{tile.warps}s{tile.stages}"
        case ExpandTile():
            return f"{tile.block_m}x{tile.block_n}r{tile.block_r}w{tile.warps}"
        case ShrinkTile():
            return f"{tile.block_m}x{tile.block_k}r{tile.block_r}w{tile.warps}s{tile.stages}"
