"""The mutants of the kernels' sources, and those that no check can catch, each with the reason.

Takes the name of a kernel file; gives copies of its text with one constant, operator, term or statement changed.
It runs nothing.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import loramux_kernels

FOLDER = Path(loramux_kernels.__file__).parent / "triton"
FILES = ("column_scale", "gemm_expand", "shrink", "single_pass", "expand", "conv_expand")  # in import order

NEVER_STORED = "what a masked lane beyond M or N is filled with is never stored"
OTHER_FACTOR = "beyond K the other factor is zero, and what lanes beyond M or N are filled with is never stored"
FASTER = "the masked way is right for every K, this one is only faster where K is whole tiles"
ONE_PART = "the stride from part to part where there is one part: it is multiplied by part 0"
NO_SCALES = "the width of the scale tables where there are none: not read"
NOTHING_ADDED = "batch rows without rank rows are skipped to save time: their entries are row 0 with scale 0"

_SURVIVORS: dict[str, dict[str, tuple[str, ...]]] = {
    NEVER_STORED: {
        "column_scale:column_scale": (
            "values = tl.load(pool_ptr + scale_row * width + columns, mask=columns < width, other=1.0)",
        ),
        "column_scale:_prescale_kernel": ("x = tl.load(x_ptr + place, mask=mask, other=1.0).to(tl.float32)",),
        "shrink:_shrink_kernel": ("x = tl.load(x_ptrs, mask=m[:, None] < M, other=1.0)",),
        "gemm_expand:multiply": (
            "x = tl.load(x_ptrs, mask=m[:, None] < M, other=1.0)",
            "w = tl.load(w_ptrs, mask=n[None, :] < N, other=1.0)",
        ),
        "gemm_expand:expand_step": (
            "s = tl.load(s_ptr + m[:, None] * S_WIDTH + r[None, :], mask=m[:, None] < M, other=1.0)",
            "b = tl.load(b_ptr + rank_rows[:, None] * N + n[None, :], mask=n[None, :] < N, other=1.0)",
        ),
        "gemm_expand:_gemm_expand_kernel": (
            "acc += tl.load(bias_ptr + part * N + n, mask=n < N, other=1.0).to(tl.float32)[None, :]",
        ),
        "single_pass:_single_pass_kernel": (
            "x = tl.load(x_ptrs, mask=m[:, None] < M, other=1.0)",
            "w = tl.load(w_ptrs, mask=n[None, :] < N, other=1.0)",
            "b = tl.load(b_ptrs, mask=n[None, :] < N, other=1.0)",
            "acc += tl.load(bias_ptr + part * N + n, mask=n < N, other=1.0).to(tl.float32)[None, :]",
        ),
        "expand:_expand_kernel": (
            "acc = tl.load(y_ptrs, mask=mask, other=1.0).to(tl.float32)",
            "acc += tl.load(bias_ptr + part * N + n, mask=n < N, other=1.0).to(tl.float32)[None, :]",
        ),
        "conv_expand:_conv_expand_kernel": (
            "acc = tl.load(y_ptrs, mask=mask, other=1.0).to(tl.float32)",
            "b = tl.load(b_ptr + rank_rows[:, None] * N + n[None, :], mask=n[None, :] < N, other=1.0)",
            "acc += tl.load(bias_ptr + n, mask=n < N, other=1.0).to(tl.float32)[None, :]",
        ),
    },
    OTHER_FACTOR: {
        "shrink:_shrink_kernel": (
            "x = tl.load(x_ptrs, mask=(m[:, None] < M) & (k[None, :] < K - start), other=1.0)",
            "a = tl.load(a_ptrs, mask=k[:, None] < K - start, other=1.0)",
        ),
        "gemm_expand:multiply": (
            "x = tl.load(x_ptrs, mask=(m[:, None] < M) & (k[None, :] < K - start), other=1.0)",
            "w = tl.load(w_ptrs, mask=(n[None, :] < N) & (k[:, None] < K - start), other=1.0)",
        ),
        "single_pass:_single_pass_kernel": (
            "x = tl.load(x_ptrs, mask=(m[:, None] < M) & (k[None, :] < K - start), other=1.0)",
            "w = tl.load(w_ptrs, mask=(n[None, :] < N) & (k[:, None] < K - start), other=1.0)",
            "a = tl.load(a_ptrs, mask=k[:, None] < K - start, other=1.0)",
        ),
    },
    FASTER: {
        "shrink:shrink": ("EVEN_K=k % tile.block_k == (-1),",),
        "gemm_expand:gemm_expand": ("EVEN_K=k % tile.block_k == (-1),",),
        "single_pass:single_pass": ("EVEN_K=k % tile.block_k == (-1),",),
    },
    ONE_PART: {
        "gemm_expand:gemm_expand": (
            "b_pool.stride(0) if b_pool.dim() == 3 else 1,",
            "b_pool.stride(0) if b_pool.dim() == 3 else (-1),",
        ),
        "single_pass:single_pass": (
            "a_pool.stride(0) if a_pool.dim() == 3 else 1,",
            "a_pool.stride(0) if a_pool.dim() == 3 else (-1),",
            "b_pool.stride(0) if b_pool.dim() == 3 else 1,",
            "b_pool.stride(0) if b_pool.dim() == 3 else (-1),",
        ),
        "expand:expand": (
            "b_pool.stride(0) if b_pool.dim() == 3 else 1,",
            "b_pool.stride(0) if b_pool.dim() == 3 else (-1),",
        ),
    },
    NO_SCALES: {
        "gemm_expand:gemm_expand": (
            "outputs.idx.shape[1] if outputs else 1,",
            "outputs.idx.shape[1] if outputs else (-1),",
        ),
        "expand:expand": ("outputs.idx.shape[1] if outputs else 1,", "outputs.idx.shape[1] if outputs else (-1),"),
        "conv_expand:conv_expand": (
            "outputs.idx.shape[1] if outputs else 1,",
            "outputs.idx.shape[1] if outputs else (-1),",
        ),
    },
    NOTHING_ADDED: {
        "single_pass:_single_pass_kernel": (
            "if tl.load(nrank_ptr + row) >= 0:",
            "if tl.load(nrank_ptr + row) > (-1):",
        ),
        "expand:_expand_kernel": (
            "if HAS_BIAS or OUTPUT_SCALES or nrank >= 0:",
            "if HAS_BIAS or OUTPUT_SCALES or nrank > (-1):",
        ),
        "conv_expand:_conv_expand_kernel": (
            "if HAS_BIAS or OUTPUT_SCALES or nrank >= 0:",
            "if HAS_BIAS or OUTPUT_SCALES or nrank > (-1):",
        ),
    },
    "a product that is multiplied by c - 1, here zero, is left out to save time": {
        "gemm_expand:_gemm_expand_kernel": (
            "if tl.load(g_count_ptr + row) >= 0:",
            "if tl.load(g_count_ptr + row) > (-1):",
        ),
    },
    "a pixel beyond the last is never stored; what it reads is within the picture": {
        "conv_expand:_conv_expand_kernel": (
            "inside = (m <= pixels) & (y_in >= 0) & (y_in < H) & (x_in >= 0) & (x_in < W)",
            "inside = (y_in >= 0) & (y_in < H) & (x_in >= 0) & (x_in < W)",
        ),
    },
}

EXPLAINED = {
    f"{place}: {line}": reason
    for reason, places in _SURVIVORS.items()
    for place, lines in places.items()
    for line in lines
}
"""Reason by key of a mutant."""


@dataclass(frozen=True)
class Mutant:
    """One change of one kernel's source."""

    file: str
    function: str
    line: int
    before: str
    after: str
    text: str

    @property
    def key(self) -> str:
        """File, function and the line as it is after the change; a statement that is left out is named.

        No line number, so that it outlives changes elsewhere in the file.
        """
        return f"{self.file}:{self.function}: {f'without {self.before}' if self.after == 'pass' else self.after}"


SWAPPED: dict[type[ast.AST], tuple[tuple[str, str], ...]] = {
    ast.Add: (("+", "-"),),
    ast.Sub: (("-", "+"),),
    ast.Mult: (("*", "+"),),
    ast.FloorDiv: (("//", "%"),),
    ast.Mod: (("%", "//"),),
    ast.BitAnd: (("&", "|"),),
    ast.And: (("and", "or"),),
    ast.Or: (("or", "and"),),
    ast.Lt: (("<", "<="), ("<", ">=")),
    ast.LtE: (("<=", "<"), ("<=", ">")),
    ast.Gt: ((">", ">="), (">", "<=")),
    ast.GtE: ((">=", ">"), (">=", "<")),
    ast.Eq: (("==", "!="),),
    ast.NotEq: (("!=", "=="),),
    ast.Is: (("is", "is not"),),
    ast.IsNot: (("is not", "is"),),
}
"""Every operator with what takes its place."""

Edit = tuple[int, int, str]
"""Start and end in the source, and what is put between them."""


def mutants(file: str) -> list[Mutant]:
    """All mutants of a kernel file: the bodies of its kernels and of what launches them."""
    source = (FOLDER / f"{file}.py").read_text()
    lines = source.split("\n")
    starts = [0]
    for text in lines:
        starts.append(starts[-1] + len(text) + 1)
    found: dict[str, Mutant] = {}
    for function in ast.parse(source).body:
        if isinstance(function, ast.FunctionDef):
            for statement in function.body:
                for node in ast.walk(statement):
                    for start, end, new in edits(node, source, starts):
                        text = source[:start] + new + source[end:]
                        line = max(i for i, at in enumerate(starts) if at <= start)
                        before, after = (of[line].split("  #")[0].strip() for of in (lines, text.split("\n")))
                        found.setdefault(text, Mutant(file, function.name, line + 1, before, after, text))
    return list(found.values())


def edits(node: ast.AST, source: str, starts: Sequence[int]) -> Iterator[Edit]:
    """Every single change of a node."""

    def span(of: ast.expr | ast.stmt) -> tuple[int, int]:
        assert of.end_lineno is not None and of.end_col_offset is not None
        return starts[of.lineno - 1] + of.col_offset, starts[of.end_lineno - 1] + of.end_col_offset

    def between(left: ast.expr, right: ast.expr, operator: ast.AST) -> Iterator[Edit]:
        start, end = span(left)[1], span(right)[0]
        for old, new in SWAPPED.get(type(operator), ()):
            yield start, end, source[start:end].replace(old, new, 1)

    match node:
        case ast.Constant(value=bool() | str() | None):
            return
        case ast.Constant(value=float() as value):
            yield (*span(node), str(value + 1))
        case ast.Constant(value=int() as value):
            yield (*span(node), str(value + 1))
            yield (*span(node), f"({value - 1})")
        case ast.BinOp(left, operator, right):
            yield from between(left, right, operator)
            if isinstance(operator, ast.Add | ast.BitAnd | ast.Sub):
                kept = (left,) if isinstance(operator, ast.Sub) else (left, right)
                yield from ((*span(node), f"({source[slice(*span(term))]})") for term in kept)
        case ast.BoolOp(operator, values):
            for left, right in pairwise(values):
                yield from between(left, right, operator)
                yield span(left)[0], span(right)[0], ""
            yield span(values[-2])[1], span(values[-1])[1], ""
        case ast.Compare(left, [operator], [right]):
            yield from between(left, right, operator)
        case ast.If(test=ast.Name() as test) | ast.IfExp(test=ast.Name() as test):
            yield (*span(test), f"not {test.id}")
        case ast.AugAssign():
            yield (*span(node), "pass")
            yield span(node.target)[1], span(node.value)[0], " -= " if isinstance(node.op, ast.Add) else " += "
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            if any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(value)):
                yield (*span(node), "pass")
        case _:
            return
