"""A run that is killed at any moment and goes on ends with the bits of a run that nobody touched."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_training as tiny
import torch
from safetensors.torch import load_file

from loramux_train import checkpoint

SCRIPT = Path(__file__).parent / "killed_run.py"
STEPS = 12


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_base(tmp_path_factory.mktemp("base"), "v_prediction")


def _start(base: Path, out: Path) -> subprocess.Popen[bytes]:
    roots = [path for path in sys.path if path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(roots), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(SCRIPT), str(base), str(out), str(STEPS)], env=environment)


def _kill_once_there_is_a_new_checkpoint(process: subprocess.Popen[bytes], folder: Path, delay: float) -> None:
    """The delay decides where between two checkpoints, or within the writing of one, the process dies."""
    before = len(checkpoint.every(folder)), _newest(folder)
    while process.poll() is None and (len(checkpoint.every(folder)), _newest(folder)) == before:
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()


def _newest(folder: Path) -> str:
    found = checkpoint.every(folder)
    return found[-1].name if found else ""


def _all_kills(base: Path, out: Path, kills: int) -> Iterator[int]:
    delays = random.Random(kills)
    for _ in range(kills):
        process = _start(base, out)
        _kill_once_there_is_a_new_checkpoint(process, out / "checkpoints", delays.uniform(0, 0.15))
        yield process.returncode


def _state(out: Path) -> dict[str, Any]:
    snapshot, _ = checkpoint.read(checkpoint.every(out / "checkpoints")[-1])
    assert snapshot.step == STEPS
    return {"numbers": snapshot.numbers, **snapshot.tensors}


@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.long)])
def test_a_killed_run_ends_with_the_bits_of_an_unbroken_one(base: Path, tmp_path: Path, kills: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert _start(base, whole).wait() == 0
    assert -signal.SIGKILL in list(_all_kills(base, broken, kills)), "nothing was killed"
    if not (broken / "adapter.safetensors").exists():
        assert _start(base, broken).wait() == 0
    one, other = _state(whole), _state(broken)
    assert one.keys() == other.keys()
    assert one["numbers"] == other["numbers"]
    assert [name for name in one if name != "numbers" and not torch.equal(one[name], other[name])] == []
    adapters = [load_file(out / "adapter.safetensors") for out in (whole, broken)]
    assert any(tensor.abs().max() > 0 for name, tensor in adapters[0].items() if "lora_up" in name)
    assert all(torch.equal(tensor, adapters[1][name]) for name, tensor in adapters[0].items())
