"""A run that is killed at any moment and goes on leaves what a run leaves that nobody touched: bits of state and of the
adapter, metadata but for times, log, samples and report."""

import json
import os
import subprocess
import sys
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


def _trained(places: tuple[str, str], folder: Path, kills: int) -> int:
    """Leaves both runs in the folder; how often the one was killed."""
    roots = [path for path in sys.path if path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(roots), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *places, str(folder), str(STEPS), str(kills)]
    return int(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


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


@pytest.mark.parametrize("kills", [1, *(pytest.param(kills, marks=pytest.mark.long) for kills in (4, 6, 8, 10))])
def test_a_killed_run_leaves_what_an_unbroken_one_leaves(places: tuple[str, str], tmp_path: Path, kills: int) -> None:
    """As many kills as are asked for, or as a run has checkpoints, each time at other moments."""
    assert _trained(places, tmp_path, kills) >= min(kills, 2), "hardly anything was killed"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
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
