"""Faults planted in the kernels are caught by checks that pass without them; a sample of all mutants is, too."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import mutation
import pytest
import torch
from survivors import EXPLAINED, FILES, FOLDER, mutants

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are interpreted; no card takes part")

LOOP = "for first in range(0, nrank, BLOCK_R):"
RANK_ROWS = "rank_rows = tl.load(idx_ptr + row * R + r).to(tl.int64)"
BIAS = "acc += tl.load(bias_ptr"

# (kernel file, what stands there, what is put there, the check that sees it)
PLANTED = {
    "scale dropped": ("shrink", "acc *= tl.load(scale_ptr + row * R + r)[None, :]", "pass", "split"),
    "scale dropped, single": ("single_pass", "s *= tl.load(scale_ptr + row * R + r)[None, :]", "pass", "single"),
    "scale dropped, conv": ("conv_expand", "s *= tl.load(scale_ptr + row * R + r)[None, :]", "pass", "dilation"),
    "rank bound of S": ("shrink", "if first < tl.load(", "if first + BLOCK_R < tl.load(", "split"),
    "rank bound": ("gemm_expand", LOOP, LOOP.replace("nrank", "nrank - 1"), "split"),
    "rank bound, a step": ("gemm_expand", LOOP, LOOP.replace("nrank", "nrank - BLOCK_R"), "vendor"),
    "rank bound, one step": ("gemm_expand", "if nrank > 0:", "if nrank > 1:", "split in one step"),
    "rank bound, single": ("single_pass", "(nrank_ptr + row) > 0:", "(nrank_ptr + row) > 1:", "single"),
    "rank bound, conv": ("conv_expand", LOOP, LOOP.replace("nrank", "nrank - 1"), "dilation"),
    "rank bound, conv, a step": ("conv_expand", LOOP, LOOP.replace("nrank", "nrank - BLOCK_R"), "dilation"),
    "B not gathered": ("gemm_expand", "rank_rows[:, None] * N", "r[:, None] * N", "split"),
    "B not gathered, one step": ("gemm_expand", "rank_rows[:, None] * N", "r[:, None] * N", "split in one step"),
    "B not gathered, vendor": ("gemm_expand", "rank_rows[:, None] * N", "r[:, None] * N", "vendor"),
    "B not gathered, single": ("single_pass", "rank_rows[:, None] * N", "r[:, None] * N", "single"),
    "B not gathered, conv": ("conv_expand", "rank_rows[:, None] * N", "r[:, None] * N", "dilation"),
    "A not gathered": ("shrink", RANK_ROWS, "rank_rows = r.to(tl.int64)", "split"),
    "bias twice": ("gemm_expand", BIAS, BIAS.replace("+= ", "+= 2 * "), "split"),
    "bias twice, single": ("single_pass", BIAS, BIAS.replace("+= ", "+= 2 * "), "single"),
    "bias twice, vendor": ("launch", "expand(y, bias if scaled else None,", "expand(y, bias,", "vendor"),
    "bias twice, conv": ("conv_expand", BIAS, BIAS.replace("+= ", "+= 2 * "), "dilation"),
}  # fmt: skip


@cache
def failure_without_a_fault(check: str) -> str | None:
    with mutation.loaded() as launch:
        return mutation.failure(launch, [check])


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_are_caught(fault: str) -> None:
    file, before, after, check = PLANTED[fault]
    source = (FOLDER / f"{file}.py").read_text()
    assert source.count(before) == 1
    assert failure_without_a_fault(check) is None
    with mutation.loaded(file, source.replace(before, after)) as launch:
        said = mutation.failure(launch, [check])
    assert said is not None and said.startswith(f"{check}: error "), said


def test_the_kernels_are_put_back() -> None:
    names = [f"loramux_kernels.triton.{name}" for name in mutation.MODULES]
    with mutation.loaded() as launch:
        before = [sys.modules[name] for name in names]
        with pytest.raises(LookupError), mutation.loaded("expand", "raise LookupError"):
            pass
        assert [sys.modules[name] for name in names] == before and before[-1] is launch


def test_every_explained_survivor_is_a_mutant() -> None:
    keys = {mutant.key for file in FILES for mutant in mutants(file)}
    assert len(keys) > 800
    assert EXPLAINED.keys() <= keys


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_sample_of_all_mutants() -> None:
    script = Path(mutation.__file__)
    done = subprocess.run([sys.executable, str(script), "--sample", "80"], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
