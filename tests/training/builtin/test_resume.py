"""A run stopped and resumed is bit for bit the run that never stopped."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from loramux_train.builtin import checkpoint
from loramux_train.builtin.concepts import CONCEPTS, caption
from loramux_train.builtin.joint import JointRecipe, JointTraining
from loramux_train.builtin.latents import GROUNDS, LatentTable

TOKENIZER = Path(__file__).parents[3] / "server/loramux_server/builtin/base/tokenizer"
MICRO = (16, 24, 32)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(TOKENIZER)


def _table() -> LatentTable:
    latents = torch.randn(3, len(GROUNDS), 2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    return LatentTable(latents, tuple(tuple(caption(c, ground) for ground in GROUNDS) for c in CONCEPTS[:3]))


def _joint(tokenizer: CLIPTokenizer) -> JointTraining:
    return JointTraining(_table(), tokenizer, JointRecipe(batch=4, channels=MICRO, seed=3))


def test_joint_run_resumes_bit_identically(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    whole, half = _joint(tokenizer), _joint(tokenizer)
    for _ in range(4):
        whole.update()
    for _ in range(2):
        half.update()
    half.save(tmp_path / "run.pt")
    resumed = _joint(tokenizer)
    resumed.resume(tmp_path / "run.pt")
    for _ in range(2):
        resumed.update()
    assert resumed.run.losses == whole.run.losses
    assert all(torch.equal(resumed.average.weights[name], tensor) for name, tensor in whole.average.weights.items())


def test_checkpoint_of_another_seed_is_refused(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    _joint(tokenizer).save(tmp_path / "run.pt")
    other = JointTraining(_table(), tokenizer, JointRecipe(batch=4, channels=MICRO, seed=7))
    with pytest.raises(ValueError, match="made with seed 3, this run has seed 7"):
        other.resume(tmp_path / "run.pt")


def test_failed_save_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    path, run = tmp_path / "run.pt", checkpoint.Run(0)
    checkpoint.save(path, run, {"states": {"kept": 1}})
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(path, run, {"states": {"broken": lambda: None}})
    assert checkpoint.load(path, run) == {"states": {"kept": 1}}
