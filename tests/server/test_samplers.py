"""The table of samplers in the documents is what the code does."""

import json
import re
from pathlib import Path

import pytest
import torch

from loramux_server.app import BUILTIN_FOLDER
from loramux_server.engine.sampling import ImageSampler, sigma_schedules, takes_timesteps
from loramux_server.requests import Sampler, Sampling

TABLE = Path(__file__).resolve().parents[2] / "docs" / "samplers.md"


def test_the_documented_table_is_true() -> None:
    lines = re.findall(r"^\| `([\w-]+)` \| (.*?) \| (.*?) \| (yes|no) \| (yes|no) \|$", TABLE.read_text(), re.M)
    assert [name for name, *_ in lines] == [str(sampler) for sampler in Sampler]
    for name, _, schedules, timesteps, _ in lines:
        assert schedules.split(", ") == list(map(str, sigma_schedules(Sampler(name)))), name
        assert (timesteps == "yes") == takes_timesteps(Sampler(name)), name


@pytest.mark.parametrize("sampler", Sampler)
@pytest.mark.parametrize("steps", [2, 7, 20])
def test_evaluations_are_counted_before_they_are_made(sampler: Sampler, steps: int) -> None:
    """On the configuration that ships and on the usual one of Stable Diffusion 1.x."""
    shipped = json.loads((BUILTIN_FOLDER / "base" / "scheduler" / "scheduler_config.json").read_text())
    usual = {"skip_prk_steps": True, "steps_offset": 1, "beta_schedule": "scaled_linear"}
    sampling = Sampling(sampler, steps)
    for config in (shipped, usual):
        made = ImageSampler(sampling, config, 0, (1, 4, 2, 2), torch.device("cpu"))
        assert made.total == sampling.evaluations
