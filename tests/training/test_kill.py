"""A run that is killed at any moment and goes on leaves what a run leaves that nobody touched: bits of state and of the
adapter, metadata but for times, log, samples and report."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_training as tiny
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from loramux_train import checkpoint

SCRIPT = Path(__file__).parent / "killed_run.py"
STEPS = 12
TIMES = {"ss_training_started_at", "ss_training_finished_at", "modelspec.date"}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A base and a folder of pictures."""
    base, pictures = tiny.write_base(tmp_path_factory.mktemp("base"), "v_prediction"), tmp_path_factory.mktemp("own")
    return str(base), str(tiny.write_pictures(pictures, 7))


def _start(places: tuple[str, str], out: Path) -> subprocess.Popen[bytes]:
    roots = [path for path in sys.path if path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(roots), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(SCRIPT), *places, str(out), str(STEPS)], env=environment)


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


def _all_kills(places: tuple[str, str], out: Path, kills: int) -> Iterator[int]:
    delays = random.Random(kills)
    for _ in range(kills):
        process = _start(places, out)
        _kill_once_there_is_a_new_checkpoint(process, out / "checkpoints", delays.uniform(0, 0.3))
        yield process.returncode


def _state(out: Path) -> dict[str, Any]:
    snapshot, _ = checkpoint.read(checkpoint.every(out / "checkpoints")[-1])
    assert snapshot.step == STEPS
    return {"numbers": snapshot.numbers, **snapshot.tensors}


def _log(out: Path) -> list[dict[str, Any]]:
    """Steps and validations; a checkpoint is on disk before its line is, and its line may be lost."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if line["event"] != "checkpoint"]


def _about(out: Path) -> dict[str, str]:
    with safe_open(out / "adapter.safetensors", "pt") as file:
        return {key: value for key, value in file.metadata().items() if key not in TIMES}


def _report(out: Path) -> dict[str, Any]:
    told = json.loads((out / "report.json").read_text())
    del told["seconds"], told["config"], told["run"]["started"], told["progress"]["at"]
    return told


@pytest.mark.parametrize("kills", [1, pytest.param(4, marks=pytest.mark.long)])
def test_a_killed_run_leaves_what_an_unbroken_one_leaves(places: tuple[str, str], tmp_path: Path, kills: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert _start(places, whole).wait() == 0
    assert -signal.SIGKILL in list(_all_kills(places, broken, kills)), "nothing was killed"
    if not (broken / "report.json").exists():
        assert _start(places, broken).wait() == 0
    one, other = _state(whole), _state(broken)
    assert one.keys() == other.keys()
    assert one["numbers"] == other["numbers"]
    assert [name for name in one if name != "numbers" and not torch.equal(one[name], other[name])] == []
    adapters = [load_file(out / "adapter.safetensors") for out in (whole, broken)]
    assert any(tensor.abs().max() > 0 for name, tensor in adapters[0].items() if "lora_up" in name)
    assert all(torch.equal(tensor, adapters[1][name]) for name, tensor in adapters[0].items())
    assert _about(whole) == _about(broken) and len(_about(whole)) > 50
    assert _log(whole) == _log(broken) and len(_log(whole)) == STEPS + 4
    sheets = [np.asarray(Image.open(out / "samples.png")) for out in (whole, broken)]
    assert np.array_equal(*sheets) and len(np.unique(sheets[0])) > 50
    assert _report(whole) == _report(broken)
