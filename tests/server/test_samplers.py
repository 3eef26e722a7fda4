"""The table of samplers in the documents is what the code does."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

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


def advanced(made: ImageSampler) -> ImageSampler:
    made.advance(0.1 * made.model_input())
    return made


@pytest.mark.parametrize("sampler", Sampler)
def test_pictures_in_flight_share_nothing_of_a_sampler(sampler: Sampler) -> None:
    """Each in turn, of other seeds and numbers of steps, beside one another and one after another."""

    def new() -> list[ImageSampler]:
        sizes, device = (1, 4, 2, 2), torch.device("cpu")
        return [ImageSampler(Sampling(sampler, steps), USUAL, steps, sizes, device) for steps in (4, 7)]

    alone, together = new(), new()
    for each in alone:
        while not each.finished:
            advanced(each)
    while not all(each.finished for each in together):
        together = [each if each.finished else advanced(each) for each in together]
    for one, other in zip(alone, together, strict=True):
        assert one.total == other.total and torch.equal(one.latents, other.latents)


def test_what_is_refused_is_told_apart_by_all_it_depends_on() -> None:
    """In both orders: what was found of one is no other's."""
    given = Sampling(Sampler.DPMPP_2M, 2, timesteps=(600, 300))
    weak, plain = Sampling(Sampler.EULER, 4, strength=0.1), Sampling(Sampler.DDIM, 4)
    asked: list[tuple[Sampling, dict[str, Any], list[str]]] = [
        (plain, USUAL, []),
        (replace(plain, sigma_schedule=SigmaSchedule.KARRAS), USUAL, ["sigma_schedule"]),
        (weak, USUAL, ["strength"]),
        (replace(weak, strength=0.5), USUAL, []),
        (replace(weak, steps=20), USUAL, []),
        (given, USUAL, []),
        (given, USUAL | {"use_karras_sigmas": True}, ["timesteps"]),
        (replace(given, timesteps=()), USUAL | {"use_karras_sigmas": True}, []),
        (replace(given, sampler=Sampler.DDIM), USUAL, ["timesteps"]),
    ]
    for sampling, config, fields in [*asked, *reversed(asked)]:
        assert [violation.field for violation in violations(sampling, config)] == fields, sampling
