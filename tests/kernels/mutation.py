"""Mutation testing of the Triton kernels: every mutant is caught by a check, or `survivors` says why none can.

Takes the sources of the kernels; changes constants, operators, terms and statements one at a time and runs the
checks on the changed copy, in Triton's interpreter against float64. Every tensor that a kernel sees is NaN until
something is written to it and ends where a page without access begins, so that a read beyond it is a crash.

    python tests/kernels/mutation.py [--file shrink] [--sample 40 --seed 0]
"""

import argparse
import ctypes
import importlib
import importlib.util
import mmap
import multiprocessing
import os
import random
import resource
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from unittest.mock import patch

import torch
import torch.nn.functional as F
from oracle import Blend, Conv, Linear, conv, error, floor, linear
from survivors import EXPLAINED, FILES, FOLDER, Mutant, mutants

from loramux_kernels import RankRowPool, TableBank, Tables
from loramux_kernels.tables import ScaleTables
from loramux_kernels.triton.dispatch import ExpandTile, GemmTile, Plan, ShrinkTile

MODULES = (*FILES, "launch")
ALLOWED = 1.5  # times the rounding floor, as in test_triton
SECONDS = 60  # of CPU time for one mutant, several times what all checks take: a loop might not end
WORKERS = 2

SMALL = ShrinkTile(16, 16, 16, 4, 1)
SPLIT = Plan("split", GemmTile(16, 16, 16, 16, 4, 1), SMALL)
ONE = Plan("split", GemmTile(32, 16, 16, 32, 4, 1), ShrinkTile(16, 16, 32, 4, 1))
WIDE = Plan("split", GemmTile(32, 64, 32, 32, 4, 1), ShrinkTile(64, 32, 64, 4, 1))
SINGLE = Plan("single", GemmTile(16, 16, 16, 16, 4, 1), None)
VENDOR = Plan("vendor", ExpandTile(16, 16, 16, 4), SMALL)
CONV = Plan("conv", ExpandTile(16, 16, 16, 4), SMALL)
LARGE = Plan("conv", ExpandTile(32, 32, 16, 4), ShrinkTile(64, 32, 32, 4, 1))
# R = 32, 32 and 64; in each rows of rank 1 and of none, and a last one that reads to its table's end
BLENDS: tuple[Blend, ...] = ((1,), (), (4, 13), (16, 16))
THREE: tuple[Blend, ...] = ((1,), (), (16, 16))
BROAD: tuple[Blend, ...] = ((4, 16, 13), (), (1,), (31, 33))


def guarded(values: torch.Tensor) -> torch.Tensor:
    """A copy that ends where a page without access begins."""
    copy = unwritten(values.shape, values.dtype)
    copy.copy_(values)
    return copy


def unwritten(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Guarded memory of NaN or of large negative integers, as is what lies before it in its page."""
    count = int(torch.Size(shape).numel())
    size = count * dtype.itemsize
    held = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, held + mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start + held), mmap.PAGESIZE, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    whole = torch.frombuffer(pages, dtype=dtype, count=held // dtype.itemsize)
    whole.fill_(float("nan") if dtype.is_floating_point else -(2**30))
    return whole[len(whole) - count :].view(*shape)


@contextmanager
def guarded_buffers() -> Generator[None]:
    """What `launch` allocates, and the vendor's products, lie in guarded memory."""
    new_empty, product, convolution = torch.Tensor.new_empty, F.linear, F.conv2d

    def of(like: torch.Tensor, *shape: int, dtype: torch.dtype | None = None, device: object = None) -> torch.Tensor:
        return new_empty(like, *shape) if shape == (0,) else unwritten(shape, dtype or like.dtype)

    def pictures(*args: object) -> torch.Tensor:
        return guarded(convolution(*args).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    with (
        patch.object(torch.Tensor, "new_empty", of),
        patch.object(torch, "empty_like", lambda like: unwritten(like.shape, like.dtype)),
        patch.object(F, "linear", lambda *args: guarded(product(*args))),
        patch.object(F, "conv2d", pictures),
    ):
        yield


def guarded_pool(pool: RankRowPool, tables: Tables, a: torch.Tensor, b: torch.Tensor) -> RankRowPool:
    """A pool of guarded `a` and `b`, with guarded scale rows; NaN in scale rows that nobody uses."""
    new = RankRowPool(a, b)
    for name, of in (("g", tables.outputs), ("h", tables.inputs)):
        values: torch.Tensor | None = getattr(pool, name)
        if values is not None and of is not None:
            used = sorted({0, *of.idx.flatten().tolist()})
            kept = torch.full_like(values[: used[-1] + 1], float("nan"))
            kept[used] = values[used]
            setattr(new, name, guarded(kept))
    return new


def mapped(tables: Tables, change: Callable[[torch.Tensor], torch.Tensor]) -> Tables:
    """Tables of changed tensors."""

    def of(scales: ScaleTables | None) -> ScaleTables | None:
        return scales and ScaleTables(change(scales.idx), change(scales.scale), change(scales.count), scales.counts)

    parts = {name: change(getattr(tables, name)) for name in ("idx", "scale", "nrank")}
    return replace(tables, outputs=of(tables.outputs), inputs=of(tables.inputs), **parts)


def guarded_linear(case: Linear) -> Linear:
    """The case in guarded memory, its pool as short as its rank rows allow."""
    fused, size = case.fused, int(case.tables.idx.max()) + 1
    fused.a, fused.b = guarded(fused.a[:, :size]), guarded(fused.b[:, :size])
    pools = zip(fused.parts, fused.a, fused.b, strict=True)
    fused.parts = tuple(guarded_pool(pool, case.tables, a, b) for pool, a, b in pools)
    bias = None if case.bias is None else guarded(case.bias)
    return Linear(guarded(case.x), guarded(case.w0), bias, fused, mapped(case.tables, guarded))


def guarded_conv(case: Conv) -> Conv:
    """As `guarded_linear`; x is channels last, as it is read."""
    size = int(case.tables.idx.max()) + 1
    pool = guarded_pool(case.pool, case.tables, guarded(case.pool.a[:size]), guarded(case.pool.b[:size]))
    x = guarded(case.x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    bias = None if case.bias is None else guarded(case.bias)
    return replace(case, x=x, bias=bias, pool=pool, tables=mapped(case.tables, guarded))


@dataclass(frozen=True)
class Check:
    """A case, the plan it runs with and the kernels that take part in it."""

    modules: tuple[str, ...]
    plan: Plan
    case: Linear | Conv
    want: torch.Tensor
    terms: int
    bits: bool  # whether they are compared, too

    def run(self, launch: ModuleType, tables: Tables, order: Sequence[int] = ()) -> torch.Tensor:
        """y of the case with other tables, of its batch rows in another order."""
        case = self.case
        x = guarded(case.x[list(order)]) if order else case.x
        with guarded_buffers(), patch.object(launch, "plan_for", lambda *_: self.plan):
            if isinstance(case, Conv):
                return launch.lora_conv2d(x, case.w0, case.bias, case.pool, tables, **case.where)
            if len(case.fused.parts) > 1 and self.plan == VENDOR:  # `launch` leaves a bias of parts to the base product
                expand = launch.expand
                with patch.object(launch, "expand", lambda y, _, *rest: expand(y, case.bias, *rest)):
                    return launch.lora_qkv(x, case.w0, None, case.fused, tables)
            if len(case.fused.parts) > 1:
                return launch.lora_qkv(x, case.w0, case.bias, case.fused, tables)
            return launch.lora_linear(x, case.w0, case.bias, case.pool, tables)

    def failure(self, launch: ModuleType) -> str | None:
        """What is wrong with y, or with its bits where other batch rows have other rank rows or another place."""
        tables, order = self.case.tables, list(range(len(self.case.x)))[::-1]
        y = self.run(launch, tables)
        off, bound = error(y, self.want), ALLOWED * floor(self.want, y.dtype, self.terms)
        if not off <= bound:  # NaN is off, too
            return f"error {off:.2e}, allowed {bound:.2e}"
        if not self.bits:
            return None
        none = replace(tables, nrank=torch.zeros_like(tables.nrank))
        if not torch.equal(self.run(launch, none)[1], y[1]):
            return "a row without adapters is not the base"
        if not torch.equal(self.run(launch, mapped(tables, lambda values: guarded(values[order])), order), y[order]):
            return "other bits at another place in the batch"
        return None


def decomposed(case: Linear | Conv, outputs: bool, inputs: bool) -> Linear | Conv:
    """Weight decomposition: row 0 of both axes, row 1 of none, row 2 of the outputs, row 3 of four, which is G. Of
    three batch rows none, the one without rank rows, and the last."""
    n, k = case.w0.shape[:2]
    four = [(row, 0.5 - 0.2 * row) for row in (1, 2, 3, 4)]
    for row, _ in four:
        case.pool.write_output_scale(row, 1 + torch.randn(n) * 0.5)
        case.pool.write_input_scale(row, 1 + torch.randn(k) * 0.5)
    g, h = [[(3, 0.7)], [], [(2, -1.1), (1, 0.5)], four], [[(2, 0.8)], [], [], four]
    if len(case.x) == 3:
        g, h = [[], [(3, 0.7)], four], [[], [(2, 0.8)], four]
    tables = TableBank(torch.device("cpu")).write(case.tables.entries, g if outputs else None, h if inputs else None)
    assert tables is not None
    return replace(case, tables=tables)


def _linear(
    plan: Plan,
    dtype: torch.dtype,
    *,
    scaled: tuple[bool, bool] = (False, False),
    bits: bool = False,
    **sizes: object,
) -> Check:
    kernels = {"split": ("shrink", "gemm_expand"), "single": ("single_pass", "gemm_expand")}
    modules = kernels.get(plan.variant, ("shrink", "expand", "gemm_expand"))
    case = linear(dtype, **{"m": 20, "k": 40, "n": 24, "blends": BLENDS, **sizes})
    if any(scaled):
        case, modules = decomposed(case, *scaled), ("column_scale", *modules)
        assert isinstance(case, Linear)
    want, terms = case.want(), case.x.shape[2] * 2 + case.tables.width
    return Check((*modules, "launch"), plan, guarded_linear(case), want, terms, bits)


def _conv(plan: Plan, dtype: torch.dtype, *, scaled: tuple[bool, bool] = (False, False), **sizes: object) -> Check:
    case = conv(dtype, **{"cin": 24, "n": 24, "size": (6, 5), "blends": BLENDS, **sizes})
    modules = ("conv_expand", "shrink", "launch")
    if any(scaled):
        case, modules = decomposed(case, *scaled), ("column_scale", *modules)
        assert isinstance(case, Conv)
    want, terms = case.want(), case.pool.a.shape[1] * 2 + case.tables.width
    return Check(modules, plan, guarded_conv(case), want, terms, bits=False)


HALF, FULL = torch.float16, torch.float32
CHECKS: dict[str, Callable[[], Check]] = {
    "split": lambda: _linear(SPLIT, HALF, k=33, bits=True),
    "single": lambda: _linear(SINGLE, HALF, k=33, bits=True),
    "vendor": lambda: _linear(VENDOR, HALF, bits=True),
    "split, K of whole tiles": lambda: _linear(SPLIT, FULL, k=48, bias=False),
    "split in one step": lambda: _linear(ONE, HALF, bits=True),
    "split in wide steps": lambda: _linear(WIDE, FULL, blends=BROAD, m=70, n=72),
    "single, K of whole tiles": lambda: _linear(SINGLE, FULL, k=48, bias=False, blends=BROAD[1:]),
    "vendor, adapters alone": lambda: _linear(VENDOR, FULL, base=0.0, bias=False, blends=BROAD),
    "groups of tiles": lambda: _linear(SPLIT, HALF, m=150, k=13, n=40, blends=((3,),)),
    "groups of tiles in one pass": lambda: _linear(SINGLE, HALF, m=150, k=13, n=40, blends=((3,),)),
    "three parts": lambda: _linear(SPLIT, HALF, parts=3),
    "two parts in one pass": lambda: _linear(SINGLE, FULL, parts=2),
    "two parts by the vendor": lambda: _linear(VENDOR, HALF, parts=2),
    "output scales": lambda: _linear(SPLIT, HALF, scaled=(True, False), blends=THREE),
    "input scales": lambda: _linear(SPLIT, HALF, scaled=(False, True)),
    "scales of both axes": lambda: _linear(SPLIT, FULL, scaled=(True, True), k=32, bias=False),
    "scaled, vendor": lambda: _linear(VENDOR, HALF, scaled=(True, False)),
    "scaled, vendor, no bias": lambda: _linear(VENDOR, FULL, scaled=(True, False), blends=THREE, bias=False),
    "both scales of large tiles": lambda: _linear(WIDE, FULL, scaled=(True, True), m=34, k=136, blends=THREE),
    "3x3": lambda: _conv(CONV, HALF),
    "3x3 in large tiles, no bias": lambda: _conv(LARGE, FULL, bias=False, blends=BROAD),
    "stride": lambda: _conv(LARGE, FULL, cin=16, size=(9, 8), stride=(2, 3)),
    "dilation": lambda: _conv(LARGE, HALF, cin=16, size=(7, 8), padding=(2, 3), dilation=(2, 3), kernel=(2, 3)),
    "oblong": lambda: _conv(CONV, FULL, cin=16, size=(5, 7), kernel=(1, 3), padding=(0, 2)),
    "scaled 1x2": lambda: _conv(CONV, HALF, scaled=(True, False), kernel=(1, 2)),
    "scaled 2x1, no bias": lambda: _conv(CONV, FULL, scaled=(True, False), kernel=(2, 1), blends=THREE, bias=False),
    "both scales of 2x1": lambda: _conv(LARGE, HALF, scaled=(True, True), kernel=(2, 1)),
}


@cache
def check_of(name: str) -> Check:
    """The same data in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(name.encode()))
        return CHECKS[name]()


def unwritten_places(launch: ModuleType) -> str | None:
    """`shrink` leaves the tiles beyond a row's rank rows alone, `prescale` the rows without input scales."""
    case = check_of("scales of both axes").case
    assert isinstance(case, Linear) and case.tables.inputs is not None and case.pool.h is not None
    rows, m, k = case.x.shape
    s, scaled = unwritten((rows, m, 32), case.x.dtype), unwritten(case.x.shape, case.x.dtype)
    launch.shrink(case.x, case.pool.a, s, case.tables, SMALL, parts=1, part_stride=0, row_stride=k)
    launch.prescale(case.x, scaled, case.pool.h, case.tables.inputs)
    tiles = s.view(rows, m, 2, 16).isfinite().flatten(3).all(3).all(1).tolist()
    if tiles != [[True, False], [False, False], [True, True], [True, True]] or s.isfinite().float().mean() != 5 / 8:
        return f"shrink wrote {tiles}"
    written = scaled.isfinite().flatten(1).all(1).tolist()
    return None if written == [True, False, False, True] and scaled[1:3].isnan().all() else f"prescale wrote {written}"


def checks_of(module: str) -> list[str]:
    """Names of the checks that a kernel file takes part in."""
    return [name for name in CHECKS if module in check_of(name).modules]


def failure(launch: ModuleType, names: Sequence[str]) -> str | None:
    """What the first of the named checks says that fails; None where all is well."""
    for name, check in {**{name: check_of(name).failure for name in names}, "places": unwritten_places}.items():
        try:
            said = check(launch)
        except Exception as raised:  # an interpreted kernel may raise anything
            said = f"{type(raised).__name__}: {raised}"
        if said:
            return f"{name}: {said}"
    return None


@contextmanager
def loaded(module: str | None = None, text: str = "") -> Generator[ModuleType]:
    """`launch` on fresh copies of all kernels, `module` made of `text`; in sys.modules, too, while it lasts.

    The interpreter reads a kernel's source from its file, so the text is written to one.
    """
    prefix = "loramux_kernels.triton."
    importlib.import_module(f"{prefix}launch")
    held = {name: sys.modules[prefix + name] for name in MODULES}
    with TemporaryDirectory() as folder:
        try:
            for name in MODULES:
                path = FOLDER / f"{name}.py"
                if name == module:
                    path = Path(folder) / path.name
                    path.write_text(text)
                spec = importlib.util.spec_from_file_location(prefix + name, path)
                assert spec is not None and spec.loader is not None
                new = importlib.util.module_from_spec(spec)
                sys.modules[prefix + name] = new
                spec.loader.exec_module(new)
            yield sys.modules[prefix + "launch"]
        finally:
            for name, old in held.items():
                sys.modules[prefix + name] = old


def judge(mutant: Mutant, to: Connection) -> None:
    """Sends what caught a mutant, None where nothing did."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    try:
        with loaded(mutant.file, mutant.text) as launch:
            said = failure(launch, checks_of(mutant.file))
    except Exception as raised:
        said = f"{type(raised).__name__}: {raised}"
    to.send(said)


def verdicts(chosen: Sequence[Mutant]) -> Iterator[tuple[Mutant, str | None]]:
    """Each mutant with its verdict, in processes of their own: a crash or too long a time catches it, too."""
    fork = multiprocessing.get_context("fork")
    waiting, running = list(chosen)[::-1], dict[BaseProcess, tuple[Mutant, Connection]]()
    while waiting or running:
        while waiting and len(running) < WORKERS:
            receiver, sender = fork.Pipe(duplex=False)
            process = fork.Process(target=judge, args=(waiting[-1], sender))
            process.start()
            sender.close()
            running[process] = waiting.pop(), receiver
        wait([process.sentinel for process in running])
        for process in [process for process in running if not process.is_alive()]:
            mutant, receiver = running.pop(process)
            said: str | None = receiver.recv() if process.exitcode == 0 else f"crashed or too slow ({process.exitcode})"
            receiver.close()
            yield mutant, said


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where a mutant survived without a reason, or one died that is said to survive."""
    parser = argparse.ArgumentParser(description="Mutation testing of the Triton kernels.")
    parser.add_argument("--file", choices=FILES, action="append", help="only mutants of this kernel file")
    parser.add_argument("--sample", type=int, help="only so many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    parser.add_argument("--verbose", action="store_true", help="print what caught every mutant")
    options = parser.parse_args(arguments)
    os.environ["TRITON_INTERPRET"] = "1"  # triton is imported only now
    torch.set_num_threads(1)  # processes are forked
    begun = time.monotonic()
    chosen = [mutant for file in options.file or FILES for mutant in mutants(file)]
    if options.sample is not None and options.sample < len(chosen):
        chosen = random.Random(options.seed).sample(chosen, options.sample)
    with loaded():  # imports and data are then there in every process
        list(map(check_of, CHECKS))
    control = Mutant("launch", "", 0, "", "", (FOLDER / "launch.py").read_text())
    for _, said in verdicts([control]):
        if said:
            raise SystemExit(f"the checks fail without a mutant: {said}")
    wrong, counts = 0, Counter[str]()
    for mutant, said in verdicts(chosen):
        reason = EXPLAINED.get(mutant.key)
        outcome = "killed" if said else "explained" if reason else "SURVIVED"
        counts[f"{mutant.file} {outcome}"] += 1
        wrong += (outcome == "SURVIVED") + bool(said and reason)
        if options.verbose or not said or reason:
            print(f"{outcome} {mutant.key} (line {mutant.line}): {said or reason or ''}", flush=True)
    print("\n".join(f"{count:5} {what}" for what, count in sorted(counts.items())))
    print(f"{len(chosen)} mutants in {time.monotonic() - begun:.0f} s, {wrong} not as explained")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
