"""What the lines of the dispatch table compile to, checked on machines without a card: nothing spills, shared memory
suffices, tensor cores are used, and memory is moved 16 bytes at a time."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import NamedTuple

import aot
import pytest
from aot import Case, Kernel

import loramux_kernels
from loramux_kernels import R_CLASSES
from loramux_kernels.triton.dispatch import COLUMNS, Line, plan_for, table

ARCHS = (80, 86, 89, 90)
SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10}  # bytes that a block may have
# triton knows of a size only whether it is a multiple of 16; what is not cannot be moved 16 bytes at a time
KNOWN = 16

# Sizes of Stable Diffusion's layers: (activations, width) of the levels of SD1.5 at 512x512 and 512x768, of SD2.1 at
# 768x768 and of SDXL at 1024x1024.
LEVELS = (
    *((4096, 320), (1024, 640), (256, 1280), (64, 1280)),
    *((6144, 320), (1536, 640), (384, 1280), (96, 1280)),
    *((9216, 320), (2304, 640), (576, 1280), (144, 1280)),
    *((4096, 640), (1024, 1280)),
)
TEXT = 77  # tokens of a prompt
CONTEXTS = ((768, (320, 640, 1280)), (1024, (320, 640, 1280)), (2048, (640, 1280)))  # their width, widths of k and v
ENCODERS = (768, 1024, 1280)  # widths of the text encoders
SHORTCUTS = (  # (activations, k, n) of 1x1 convolutions
    *((4096, 640, 320), (4096, 960, 320), (1024, 320, 640), (1024, 960, 640), (1024, 1280, 640), (1024, 1920, 640)),
    *((256, 640, 1280), (256, 1920, 1280), (256, 2560, 1280), (64, 2560, 1280)),
    *((16384, 640, 320), (16384, 960, 320), (4096, 320, 640), (4096, 960, 640), (4096, 1280, 640), (4096, 1920, 640)),
    *((1024, 640, 1280), (1024, 1920, 1280), (1024, 2560, 1280)),
)
CONVOLUTIONS = (  # (side of the output, stride, channels in, channels out) of 3x3 convolutions
    *((64, 1, 4, 320), (64, 1, 320, 4), (64, 1, 320, 320), (32, 2, 320, 320), (64, 1, 640, 320), (64, 1, 960, 320)),
    *((32, 1, 320, 640), (32, 1, 640, 640), (16, 2, 640, 640), (32, 1, 1280, 640), (32, 1, 1920, 640)),
    *((16, 1, 640, 1280), (16, 1, 1280, 1280), (8, 2, 1280, 1280), (8, 1, 2560, 1280), (16, 1, 1920, 1280)),
    *((128, 1, 4, 320), (128, 1, 320, 4), (128, 1, 320, 320), (64, 2, 320, 320), (128, 1, 960, 320)),
    *((64, 1, 640, 640), (128, 1, 640, 640), (64, 1, 1920, 640), (32, 1, 1280, 1280), (64, 1, 1280, 1280)),
)
ROWS = (2, 16)  # one and eight pictures, each with its unguided half
SCALED = ((False, False), (True, False), (True, True))  # outputs, inputs


@dataclass(frozen=True, slots=True)
class Wanted:
    """A case, the line that decides it, and the card."""

    arch: int
    line: Line
    case: Case

    @property
    def key(self) -> str:
        """Name in the cache: all that the result depends on."""
        case = json.dumps(asdict(self.case), sort_keys=True)
        return hashlib.sha256(f"{_sources()} {self.arch} {self.line.plan} {case}".encode()).hexdigest()


@cache
def _sources() -> str:
    """Of the kernels, of what measures them and of the compiler."""
    files = [Path(aot.__file__), *sorted(Path(loramux_kernels.__file__).parent.rglob("*.py"))]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return f"{digest} {version('triton')}"


def real_calls(op: str, dtype: str) -> Iterator[Case]:
    """Cases of every layer, batch size and R class, of every way to scale them; small ones first."""
    layers = sorted(_linears() if op == "linear" else _convolutions(), key=lambda layer: (layer.m, str(layer)))
    for rows, r, layer, (outputs, inputs) in product(ROWS, R_CLASSES[1:], layers, SCALED):
        if not outputs or (layer.parts == 1 and not (inputs and op == "conv")):  # these launch the same kernels
            yield replace(layer, dtype=dtype, rows=rows, r=r, outputs=outputs, inputs=inputs)


def _linears() -> set[Case]:
    shapes: list[tuple[int, int, int, int]] = []
    for m, width in LEVELS:
        shapes += [(m, width, width, 1), (m, width, width, 3), (m, width, 8 * width, 1), (m, 4 * width, width, 1)]
    for context, widths in CONTEXTS:
        shapes += [(TEXT, context, width, parts) for width in widths for parts in (1, 2)]
    for width in ENCODERS:
        shapes += [(TEXT, width, width, 1), (TEXT, width, 4 * width, 1), (TEXT, 4 * width, width, 1)]
    shapes += [(m, k, n, 1) for m, k, n in SHORTCUTS]
    return {Case("linear", "", 0, m, k, n, 0, parts=parts) for m, k, n, parts in shapes}


def _convolutions() -> set[Case]:
    return {Case("conv", "", 0, side * side, k, n, 0, kernel=3, stride=stride) for side, stride, k, n in CONVOLUTIONS}


@cache
def decided(arch: int) -> dict[Line, list[Case]]:
    """The real calls that each line decides."""
    lines = [line for line in table() if line.arch == f"sm_{arch}"]
    found: dict[Line, list[Case]] = {line: [] for line in lines}
    for op, dtype in product(("linear", "conv"), ("bfloat16", "float32")):
        for case in real_calls(op, dtype):
            call = case.call
            found[next(line for line in lines if line.fits(call))].append(case)
    return found


def chosen(arch: int, line: Line) -> list[Wanted]:
    """Calls that a line is judged by: the lowest and the highest R class, in bf16 with bias and in fp16 without, or in
    fp32; and scaled."""
    cases = decided(arch)[line]
    plain = sorted((case for case in cases if not case.outputs), key=lambda case: (case.r, case.parts))
    picked = [*plain[:1], *plain[-1:]]
    if line.bits == 16:
        picked += [replace(case, dtype="float16", bias=False) for case in picked]
    for outputs, inputs in SCALED[1:]:
        scaled = [case for case in cases if (case.outputs, case.inputs) == (outputs, inputs)]
        picked += [replace(case, bias=inputs) for case in scaled[-1:]]
    return [Wanted(arch, line, case) for case in dict.fromkeys(picked)]


def sample(arch: int) -> list[Wanted]:
    """One call of every variant."""
    firsts: dict[str, Wanted] = {}
    for line in decided(arch):
        for wanted in chosen(arch, line)[:1]:
            firsts.setdefault(line.plan.variant, wanted)
    return list(firsts.values())


def compiled(folder: Path, wanted: Iterable[Wanted]) -> dict[Wanted, list[Kernel]]:
    """What every call compiles to, from the cache or from two compilers at a time."""
    missing: dict[int, list[Wanted]] = {}
    for one in dict.fromkeys(wanted):
        if not (folder / one.key).exists():
            missing.setdefault(one.arch, []).append(one)
    with ThreadPoolExecutor(2) as compilers:
        list(compilers.map(lambda ones: _compile(folder, ones), missing.values()))
    return {one: [Kernel.load(line) for line in (folder / one.key).read_text().splitlines()] for one in wanted}


def _compile(folder: Path, wanted: Sequence[Wanted]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder / "triton")
    done = subprocess.run(
        [sys.executable, aot.__file__, "--arch", str(wanted[0].arch)],
        input=json.dumps([asdict(one.case) for one in wanted]),
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    lines: dict[int, list[str]] = {}
    for line in done.stdout.splitlines():
        lines.setdefault(Kernel.load(line).case, []).append(line)
    for number, one in enumerate(wanted):
        (folder / one.key).write_text("\n".join(lines[number]))


def faults(wanted: Wanted, kernel: Kernel) -> list[str]:
    """What is wrong with a kernel."""
    found: list[str] = []
    if kernel.plan != str(wanted.line.plan):
        found.append(f"ran with {kernel.plan}, not with its line's {wanted.line.plan}")
    if kernel.spills or kernel.stack:
        found.append(f"spills {kernel.spills} bytes, {kernel.stack} of stack")
    if kernel.shared > SHARED[wanted.arch]:
        found.append(f"{kernel.shared} bytes of shared memory, {SHARED[wanted.arch]} there are")
    if kernel.warnings:
        found.append(f"ptxas warns {kernel.warnings}")
    if kernel.name != "_prescale_kernel":
        found += [*_tensor_core_faults(wanted, kernel), *_copy_faults(wanted, kernel)]
    if "BLOCK_N" in kernel.sizes and wanted.case.n % KNOWN == 0 and set(kernel.stores) != {16}:
        found.append(f"stores by bytes: {kernel.stores}, expected 16 only")
    return [f"sm_{wanted.arch} {kernel.name} {fault}; {wanted.case}; {wanted.line.plan}" for fault in found]


def _tensor_core_faults(wanted: Wanted, kernel: Kernel) -> Iterator[str]:
    instructions = {"wgmma": kernel.wgmma, "m16n8k16": kernel.mma16}
    expected = "wgmma" if wanted.arch == 90 and kernel.sizes["BLOCK_M"] >= 64 else "m16n8k16"
    if wanted.case.bits == 32:
        if kernel.mma:
            yield f"{kernel.mma} products by tensor cores, which round fp32"
    elif not kernel.mma or kernel.mma != instructions[expected]:
        yield f"{kernel.mma} products by tensor cores, {instructions}, expected {expected} only"


def _copy_faults(wanted: Wanted, kernel: Kernel) -> Iterator[str]:
    """Whether every operand comes 16 bytes at a time: in asynchronous copies where a loop overlaps them.

    Of a line that was measured, a tile may be too small for that and come 8 or 4 bytes at a time: it was the fastest
    on a card, and what is asked here is a guess at what is fast there.
    """
    case, size, threads = wanted.case, wanted.case.bits // 8, 32 * kernel.sizes["warps"]
    copies, loads, narrow, widths, few = 0, 0, False, {4, 16}, 0
    for name, operand in _operands(case, kernel).items():
        moves = operand.values * size // (16 * threads)
        if operand.row % KNOWN:
            narrow = True
        elif not moves and wanted.line.evidence.startswith("measured") and operand.values * size // threads in (4, 8):
            widths.add(operand.values * size // threads)
            few += operand.stages
        elif not moves:
            yield f"the tile of {name} has less than 16 bytes for each thread"
        elif operand.stages:
            copies += operand.stages * moves
        else:
            loads += moves
    if kernel.copies.get(16, 0) < copies:
        yield f"copies by bytes: {kernel.copies}, expected {copies} of 16 at least"
    if kernel.loads.get(16, 0) < loads:
        yield f"loads by bytes: {kernel.loads}, expected {loads} of 16 at least"
    few += 2 * kernel.sizes["stages"]  # row numbers and scales, 4 bytes a thread
    if not narrow and (kernel.copies.keys() - widths or kernel.copies.get(4, 0) > few):
        yield f"copies by bytes: {kernel.copies}, expected 16, and 4 for row numbers"


class Operand(NamedTuple):
    """What a kernel reads: values of a tile, length of a row in memory, stages of it that a loop fills beforehand."""

    values: int
    row: int
    stages: int


def _operands(case: Case, kernel: Kernel) -> dict[str, Operand]:
    sizes = kernel.sizes
    m, n, k = sizes["BLOCK_M"], sizes.get("BLOCK_N", 0), sizes.get("BLOCK_K", 0)
    r, stages = sizes.get("BLOCK_R", sizes["R"]), sizes["stages"]
    x, w, a = (Operand(rows * k, case.k, stages) for rows in (m, n, r))
    s, b = Operand(m * r, sizes["R"], 1), Operand(r * n, case.n, 1)
    match kernel.name:
        case "_shrink_kernel":
            return {"x": x, "A": a}
        case "_gemm_expand_kernel" if r == sizes["R"]:  # one step, no loop
            return {"x": x, "W": w, "S": s._replace(stages=0), "B": b._replace(stages=0)}
        case "_gemm_expand_kernel":
            return {"x": x, "W": w, "S": s, "B": b}
        case "_single_pass_kernel":
            return {"x": x, "W": w, "A": a, "B": b._replace(stages=0)}
        case "_expand_kernel":
            return {"S": s, "B": b}
        case "_conv_expand_kernel":
            return {"tap products": Operand(9 * m * r * 32 // case.bits, sizes["R"], 1), "B": b}
        case _:
            raise ValueError(f"{kernel.name}: what should it read?")


def _planted(arch: int, variant: str, tile: str, shrink: str) -> Wanted:
    """A layer of SD1.5 with a line that the table does not have."""
    cells = (f"sm_{arch}", "16", "linear", "*", "*", "*", "64", variant, tile, shrink, "planted")
    lines = (",".join(COLUMNS), ",".join(cells))
    case = Case("linear", "bfloat16", 2, 1024, 640, 640, 16, line=lines)
    return Wanted(arch, aot.read(lines)[0], case)


BAD = {
    _planted(80, "single", "128x128x64r16w4s3", "-"): "spills",
    _planted(86, "split", "128x256x64r16w8s4", "64x64r16w4s4"): "shared memory",
    _planted(90, "single", "128x128x64r16w8s3", "-"): "tile of A",
}
"""Lines that should not pass, and what is said of them."""


@pytest.fixture(scope="module")
def folder(pytestconfig: pytest.Config) -> Path:
    """The cache."""
    return pytestconfig.cache.mkdir("aot")


@pytest.fixture(scope="module")
def sampled(folder: Path) -> dict[Wanted, list[Kernel]]:
    """The sample of every card, and the bad lines."""
    return compiled(folder, [*(one for arch in ARCHS for one in sample(arch)), *BAD])


@pytest.fixture(scope="module")
def everything(folder: Path) -> dict[Wanted, list[Kernel]]:
    """All lines of every card."""
    return compiled(folder, [one for arch in ARCHS for line in decided(arch) for one in chosen(arch, line)])


def _faults_of(arch: int, kernels: dict[Wanted, list[Kernel]]) -> list[str]:
    ours = {wanted: found for wanted, found in kernels.items() if wanted.arch == arch and wanted not in BAD}
    assert ours and all(ours.values())
    return [fault for wanted, found in ours.items() for kernel in found for fault in faults(wanted, kernel)]


@pytest.mark.parametrize("arch", ARCHS)
def test_every_line_decides_a_real_call(arch: int) -> None:
    for line, cases in decided(arch).items():
        assert cases, f"no layer takes {line}"
        assert plan_for(line.arch, cases[0].call) == line.plan


@pytest.mark.parametrize("arch", ARCHS)
def test_every_variant_compiles_well(arch: int, sampled: dict[Wanted, list[Kernel]]) -> None:
    variants = {wanted.line.plan.variant for wanted in sampled if wanted.arch == arch and wanted not in BAD}
    assert variants == {"split", "single", "vendor", "conv"}
    found = _faults_of(arch, sampled)
    assert not found, "\n".join(found)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("arch", ARCHS)
def test_every_line_compiles_well(arch: int, everything: dict[Wanted, list[Kernel]]) -> None:
    found = _faults_of(arch, everything)
    assert not found, "\n".join(found)


def test_a_bad_line_is_noticed(sampled: dict[Wanted, list[Kernel]]) -> None:
    for wanted, message in BAD.items():
        assert any(message in fault for kernel in sampled[wanted] for fault in faults(wanted, kernel))


def test_every_gate_closes(sampled: dict[Wanted, list[Kernel]]) -> None:
    wanted, kernels = next((one, kernels) for one, kernels in sampled.items() if one.line.plan.variant == "split")
    good = next(kernel for kernel in kernels if kernel.name == "_gemm_expand_kernel")
    worse = {
        "ran with": replace(good, plan="another"),
        "spills": replace(good, stack=8),
        "shared memory": replace(good, shared=SHARED[wanted.arch] + 1),
        "ptxas warns": replace(good, warnings=["C7510"]),
        "products by tensor cores": replace(good, mma=0, mma16=0, wgmma=0),
        "copies by bytes": replace(good, copies={**good.copies, 16: 1}),
        "loads by bytes": replace(good, loads={4: 8}),
        "expected 16, and 4": replace(good, copies={**good.copies, 8: 1}),
        "expected 16 only": replace(good, stores={8: 16}),
    }
    assert faults(wanted, good) == []
    for message, kernel in worse.items():
        assert [message in fault for fault in faults(wanted, kernel)] == [True]
