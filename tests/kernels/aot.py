"""Compiles the Triton kernels that calls launch, for a card that need not be here, and measures the machine code.

Takes cases; gives what was compiled for each. The real operations run, so that the kernels get the very hints
(divisible by 16, equal to 1) that they get on a card; launches end at the compiler. The vendor's products are left
out. Triton must not be interpreting, so tests run this file as a program:

    python aot.py --arch 90 < cases.json     a list of `Case` in, a line of JSON for every `Kernel` out
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from loramux_kernels import FusedPool, RankRowPool, TableBank, Tables, lora_conv2d, lora_linear, lora_qkv
from loramux_kernels.triton.dispatch import Call, read

CPU = torch.device("cpu")
POOL_ROWS = 600


@dataclass(frozen=True, slots=True)
class Case:
    """One call. m: activations of a batch row (in a convolution output pixels of a square picture); n: outputs of a
    part; line: a dispatch line, heading included, to use instead of the one that the table has."""

    op: str
    dtype: str
    rows: int
    m: int
    k: int
    n: int
    r: int
    parts: int = 1
    kernel: int = 1
    stride: int = 1
    bias: bool = True
    outputs: bool = False
    inputs: bool = False
    line: tuple[str, ...] = ()

    @property
    def bits(self) -> int:
        """Width of a value."""
        return 32 if self.dtype == "float32" else 16

    @property
    def call(self) -> Call:
        """What the dispatch table is asked."""
        m, n = self.rows * self.m, self.parts * self.n
        scaled_inputs = self.inputs and self.op == "linear"
        return Call(self.op, self.bits, m, n, self.k, self.r, self.outputs, scaled_inputs)


@dataclass(frozen=True, slots=True)
class Kernel:
    """What was compiled. case: its number; plan: the plan as text; sizes: constants, warps and stages by name;
    copies, loads, stores: asynchronous copies, loads and stores of global memory by bytes; warnings: of wgmma that was
    serialised."""

    case: int
    plan: str
    name: str
    sizes: dict[str, int]
    registers: int
    spills: int
    stack: int
    shared: int
    warnings: list[str]
    copies: dict[int, int]
    loads: dict[int, int]
    stores: dict[int, int]
    wgmma: int
    mma16: int
    mma: int

    @classmethod
    def load(cls, line: str) -> "Kernel":
        """Of a line of JSON."""
        values = json.loads(line)
        for name in ("copies", "loads", "stores"):
            values[name] = {int(width): count for width, count in values[name].items()}
        return cls(**values)


def compile_cases(arch: int, cases: list[Case]) -> None:
    """Prints a line for every kernel of every case."""
    compiled: list[tuple[Any, tuple[str, ...]]] = []
    plans = _prepare(arch, compiled)
    for number, case in enumerate(cases):
        compiled.clear()
        plans.clear()
        if case.line:
            plans.append(read(case.line)[0].plan)
        _call(case)
        plan = str(plans[-1])
        for kernel, arguments in compiled:
            print(json.dumps(asdict(_measure(arch, number, plan, kernel, arguments))), flush=True)


def _prepare(arch: int, compiled: list[tuple[Any, tuple[str, ...]]]) -> list[Any]:
    """Puts a card that compiles only in the place of the driver, and fills `compiled` with its kernels. Returns the
    list that the plans of a case are put into; a plan that is there already is used."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import JITFunction, driver

    from loramux_kernels.triton import launch

    target = GPUTarget("cuda", arch, 32)
    card = SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_active_torch_device=lambda: CPU,
    )
    driver.set_active(card)
    run, plan_for = JITFunction.run, launch.plan_for
    plans: list[Any] = []

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        compiled.append((kernel, tuple(self.arg_names)))
        return kernel

    def noted_plan(name: str, call: Call) -> Any:
        if not plans:
            plans.append(plan_for(name, call))
        return plans[0]

    JITFunction.run = compile_only
    launch.plan_for = noted_plan
    launch._arch = lambda device: f"sm_{arch}"
    launch.F = SimpleNamespace(linear=_empty_linear, conv2d=_empty_conv2d)
    return plans


def _empty_linear(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], w.shape[0])


def _empty_conv2d(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, *where: Any) -> torch.Tensor:
    shape = torch.nn.functional.conv2d(x.to("meta"), w.to("meta"), None, *where).shape
    return torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)


def _call(case: Case) -> None:
    """Runs the operation on buffers that nothing has written to."""
    dtype = getattr(torch, case.dtype)
    k = case.k * case.kernel**2
    pool: Any = RankRowPool(torch.empty(POOL_ROWS, k, dtype=dtype), torch.empty(POOL_ROWS, case.n, dtype=dtype))
    if case.parts > 1:
        pool = FusedPool(case.parts, POOL_ROWS, k, case.n, dtype=dtype, device=CPU)
    if case.outputs:
        pool.g = torch.zeros(256, case.n)
    if case.inputs:
        pool.h = torch.zeros(256, case.k)
    bias = torch.empty(case.parts * case.n, dtype=dtype) if case.bias else None
    tables = _tables(case)
    if case.op == "linear":
        x = torch.empty(case.rows, case.m, case.k, dtype=dtype)
        w = torch.empty(case.parts * case.n, case.k, dtype=dtype)
        operation: Callable[..., Any] = lora_qkv if case.parts > 1 else lora_linear
        operation(x, w, bias, pool, tables, impl="triton")
        return
    side = math.isqrt(case.m) * case.stride
    x = torch.empty(case.rows, case.k, side, side, dtype=dtype, memory_format=torch.channels_last)
    w = torch.empty(case.n, case.k, case.kernel, case.kernel, dtype=dtype)
    stride, padding = (case.stride,) * 2, (case.kernel // 2,) * 2
    lora_conv2d(x, w, bias, pool, tables, stride=stride, padding=padding, impl="triton")


def _tables(case: Case) -> Tables:
    blend = [[(i + 1, 1.0) for i in range(case.r)]] * case.rows
    scales = [[(1, 1.0)]] * case.rows
    tables = TableBank(CPU).write(blend, scales if case.outputs else None, scales if case.inputs else None)
    assert tables is not None
    return tables


def _measure(arch: int, case: int, plan: str, kernel: Any, arguments: tuple[str, ...]) -> Kernel:
    constants = {arguments[place[0]]: value for place, value in kernel.src.constants.items()}
    sizes = {name: int(value) for name, value in constants.items() if isinstance(value, int)}
    sizes |= {"warps": kernel.metadata.num_warps, "stages": kernel.metadata.num_stages}
    ptx = kernel.asm["ptx"]
    registers, spills, stack, warnings = _assembled(arch, ptx, kernel.asm["cubin"])
    return Kernel(
        case,
        plan,
        kernel.name,
        sizes,
        registers,
        spills,
        stack,
        kernel.metadata.shared,
        list(warnings),
        _copies(ptx),
        _moves("ld", ptx),
        _moves("st", ptx),
        wgmma=ptx.count("wgmma.mma_async"),
        mma16=len(re.findall(r"mma\.sync\S*\.m16n8k16\.", ptx)),
        mma=ptx.count("mma.sync") + ptx.count("wgmma.mma_async"),
    )


def _copies(ptx: str) -> dict[int, int]:
    """How many asynchronous copies of how many bytes."""
    found = re.findall(r"cp\.async\.c[ag]\.shared\.global\S*\s+\[[^]]*\], \[[^]]*\], (\w+)", ptx)
    return dict(Counter(int(size, 0) for size in found))


def _moves(instruction: str, ptx: str) -> dict[int, int]:
    """How many loads from or stores to global memory of how many bytes."""
    found = re.findall(rf"\b{instruction}\.global(\S*)\s", ptx)
    counts: Counter[int] = Counter()
    for suffix in found:
        width = re.search(r"(?:\.v(\d))?\.[bf](\d+)$", suffix)
        if not width:
            raise RuntimeError(f"a {instruction}.global{suffix} of how many bytes?")
        counts[int(width[1] or 1) * int(width[2]) // 8] += 1
    return dict(counts)


@cache
def _assembled(arch: int, ptx: str, cubin: bytes) -> tuple[int, int, int, tuple[str, ...]]:
    """Registers, bytes spilled, bytes of stack, warnings about serialised wgmma."""
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        binary.write_bytes(cubin)
        name = "sm_90a" if arch == 90 else f"sm_{arch}"
        log = _tool("ptxas", "-v", f"--gpu-name={name}", source, "-o", Path(folder, "again.cubin"))
        usage = _tool("cuobjdump", "-res-usage", binary)
    registers = re.search(r"Used (\d+) registers", log)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    stack = re.search(r"STACK:(\d+)", usage)
    if not (registers and spills and stack):
        raise RuntimeError(f"no figures from ptxas or cuobjdump:\n{log}\n{usage}")
    spilled = int(spills[1]) + int(spills[2])
    return int(registers[1]), spilled, int(stack[1]), tuple(re.findall(r"C75\d\d", log))


def _tool(name: str, *arguments: str | Path) -> str:
    """What one of the programs that triton brings says."""
    from triton import knobs

    program = getattr(knobs.nvidia, name).path
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description="compile cases from stdin, print what came out")
    parser.add_argument("--arch", type=int, required=True, help="compute capability, such as 90")
    arch = parser.parse_args().arch
    cases = [Case(**{**values, "line": tuple(values.get("line", ()))}) for values in json.load(sys.stdin)]
    compile_cases(arch, cases)


if __name__ == "__main__":
    main()
