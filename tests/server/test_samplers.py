"""The table of samplers in the documents is what the code does."""

import json
import re
from pathlib import Path

import pytest
import torch

from loramux_server.app import BUILTIN_FOLDER
from loramux_server.engine.sampling import ImageSampler, facts, violations
from loramux_server.requests import Sampler, Sampling, SigmaSchedule

TABLE = Path(__file__).resolve().parents[2] / "docs" / "samplers.md"


USUAL = {"skip_prk_steps": True, "steps_offset": 1, "beta_schedule": "scaled_linear"}


def lines() -> list[tuple[str, ...]]:
    return re.findall(r"^\| `([\w-]+)` \| (.*?) \| (.*?) \| (yes|no) \| (yes|no) \|$", TABLE.read_text(), re.M)


def test_the_documented_table_is_what_servers_tell() -> None:
    assert [name for name, *_ in lines()] == [str(sampler) for sampler in Sampler]
    for (name, _, schedules, timesteps, _), told in zip(lines(), facts(), strict=True):
        assert (told.sampler, *map(str, told.sigma_schedules)) == (name, *schedules.split(", "))
        assert told.takes_timesteps is (timesteps == "yes"), name


@pytest.mark.parametrize("line", lines(), ids=lambda line: line[0])
def test_the_documented_table_is_what_samplers_do(line: tuple[str, ...]) -> None:
    """What is in it is taken, and whatever is not is refused."""
    name, documented, schedules, timesteps, noisy = line
    sampler = Sampler(name)
    for schedule in SigmaSchedule:
        refused = violations(Sampling(sampler, 4, schedule), USUAL)
        assert [violation.field for violation in refused] == (
            [] if schedule in schedules.split(", ") else ["sigma_schedule"]
        )
    refused = violations(Sampling(sampler, 2, timesteps=(600, 300)), USUAL)
    assert [violation.field for violation in refused] == ([] if timesteps == "yes" else ["timesteps"])
    made = [ImageSampler(Sampling(sampler, 4), USUAL, 0, (1, 4, 2, 2), torch.device("cpu")) for _ in range(2)]
    assert type(made[0]._scheduler).__name__ == documented.partition(",")[0]
    for seed, each in enumerate(made):
        if "generator" in each._extra:
            each._extra["generator"].manual_seed(seed)
        while not each.finished:
            each.advance(0.1 * each.model_input())
    assert torch.equal(made[0].latents, made[1].latents) is (noisy == "no")


@pytest.mark.parametrize("sampler", Sampler)
@pytest.mark.parametrize("steps", [2, 7, 20])
def test_evaluations_are_counted_before_they_are_made(sampler: Sampler, steps: int) -> None:
    """On the configuration that ships and on the usual one of Stable Diffusion 1.x."""
    shipped = json.loads((BUILTIN_FOLDER / "base" / "scheduler" / "scheduler_config.json").read_text())
    sampling = Sampling(sampler, steps)
    for config in (shipped, USUAL):
        made = ImageSampler(sampling, config, 0, (1, 4, 2, 2), torch.device("cpu"))
        assert made.total == sampling.evaluations
