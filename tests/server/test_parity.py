"""Pictures equal those of diffusers' own pipeline with the same adapters through PEFT."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peer_schedulers import peer_scheduler

from loramux_server.engine.sampling import sigma_schedules, takes_timesteps
from loramux_server.requests import BlendEntry, GenerationRequest, Sampler, SigmaSchedule

# PEFT warns of every adapter after the first.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")


class Peer:
    """diffusers' StableDiffusionPipeline with adapters loaded by its own loader."""

    def __init__(self, base: Path, adapters: Sequence[Any]) -> None:
        self.pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self.config = self.pipe.scheduler.config
        for adapter in adapters:
            self.pipe.load_lora_weights(adapter.file, adapter_name=adapter.name)

    def draw(self, request: GenerationRequest) -> np.ndarray:
        assert request.sampler is not None and request.seed is not None and request.steps is not None
        self.pipe.scheduler = peer_scheduler(request, self.config)
        if request.blend:
            self.pipe.enable_lora()
            self.pipe.set_adapters([e.adapter for e in request.blend], [e.weight for e in request.blend])
        elif self.pipe.get_list_adapters():
            self.pipe.disable_lora()
        side = self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor
        width, height = request.width or side, request.height or side
        image = self.pipe(
            request.prompt,
            negative_prompt=request.negative_prompt or None,
            num_inference_steps=request.steps,
            timesteps=list(request.timesteps) or None,
            guidance_scale=request.guidance_scale,
            guidance_rescale=request.guidance_rescale or 0.0,
            height=height,
            width=width,
            generator=torch.Generator("cpu").manual_seed(request.seed),
        ).images[0]
        return np.asarray(image)


def requests(names: Sequence[str], sampler: Sampler, steps: int) -> list[GenerationRequest]:
    """No adapter, each alone, and all blended; guided and not."""
    blends = [
        (),
        *(((name, 1.0),) for name in names),
        tuple(zip(names, (0.7, -0.4, 0.9), strict=True)),
    ]
    return [
        GenerationRequest(
            prompt="a red apple",
            negative_prompt="a dog",
            blend=tuple(BlendEntry(name, weight) for name, weight in blend),
            sampler=sampler,
            steps=steps,
            guidance_scale=guidance,
            seed=7,
        )
        for blend in blends
        for guidance in (4.0, 1.0)
    ]


def distance(one: np.ndarray, other: np.ndarray) -> int:
    """Largest difference of any pixel, in 255ths."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def check_adapters_act(asked: Sequence[GenerationRequest], wanted: Sequence[np.ndarray]) -> None:
    """Each adapter alone moves the reference by at least 20/255 somewhere, or equality proves nothing."""
    plain = {r.guidance_scale: picture for r, picture in zip(asked, wanted, strict=True) if not r.blend}
    for request, picture in zip(asked, wanted, strict=True):
        if len(request.blend) == 1:
            assert distance(picture, plain[request.guidance_scale]) >= 20, request.blend


BASES = {"tiny_base": 0.5, "other_tiny_base": 0.5, "built_in_base": 0.15}
"""Bases, with the strength of random adapters on them."""


OTHERS_LONG = pytest.mark.parametrize(
    "pair",
    [pytest.param(base, marks=() if base == "tiny_base" else pytest.mark.long) for base in BASES],
    indirect=True,
    scope="module",
)
"""For tests whose short form is the first base alone."""


@pytest.fixture(scope="module", params=BASES)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, three_adapters: Any, server_class: Any
) -> Iterator[tuple[Any, Peer, list[str]]]:
    """Our server and diffusers' pipeline on one base, with the same adapters."""
    base, folder = request.getfixturevalue(request.param), tmp_path_factory.mktemp("parity")
    adapters = three_adapters(base, folder, BASES[request.param])
    server = server_class(str(base), folder / "store")
    server.publish(adapters)
    yield server, Peer(base, adapters), [adapter.name for adapter in adapters]
    server.close()


def check(pair: tuple[Any, Peer, list[str]], asked: Sequence[GenerationRequest]) -> list[np.ndarray]:
    """Ours, drawn in one stream, equal the peer's, which are given back."""
    server, peer, _ = pair
    wanted = [peer.draw(request) for request in asked]
    for request, got, want in zip(asked, server.draw(asked), wanted, strict=True):
        assert distance(got, want) <= 1, request
    return wanted


@pytest.mark.parametrize(
    "sampler", [pytest.param(s, marks=() if s == Sampler.DDIM else pytest.mark.long) for s in Sampler]
)
def test_pictures_equal_the_peers(sampler: Sampler, pair: tuple[Any, Peer, list[str]]) -> None:
    asked = requests(pair[2], sampler, steps=5)
    check_adapters_act(asked, check(pair, asked))


@pytest.mark.parametrize("sampler", [s for s in Sampler if s != Sampler.DDIM])
def test_pictures_of_every_sampler_equal_the_peers(sampler: Sampler, pair: tuple[Any, Peer, list[str]]) -> None:
    """The short form: the blend of three, guided and not."""
    asked = [request for request in requests(pair[2], sampler, steps=4) if len(request.blend) == 3]
    one, other = check(pair, asked)
    assert distance(one, other) > 1


WITH_SIGMAS = [(s, schedule) for s in Sampler for schedule in sigma_schedules(s) if schedule != SigmaSchedule.BASE]


@OTHERS_LONG
def test_every_spread_of_noise_levels_equals_the_peers(pair: tuple[Any, Peer, list[str]]) -> None:
    """In one stream: all samplers with all their schedules, each beside the others."""
    server, peer, names = pair
    asked = [
        GenerationRequest(
            "a red apple", blend=(BlendEntry(names[0], 0.8),), sampler=sampler, sigma_schedule=schedule, steps=4,
            guidance_scale=3.0, seed=5,
        )
        for sampler, schedule in WITH_SIGMAS
    ]  # fmt: skip
    assert len(asked) == 18
    drawn = server.draw(asked)
    assert len({picture.tobytes() for picture in drawn}) == len(asked), "two schedules draw the same picture"
    for request, got in zip(asked, drawn, strict=True):
        assert distance(got, peer.draw(request)) <= 1, request


@OTHERS_LONG
@pytest.mark.filterwarnings("ignore:timesteps:UserWarning")
def test_given_timesteps_and_guidance_rescale_equal_the_peers(pair: tuple[Any, Peer, list[str]]) -> None:
    server, peer, names = pair
    plain = GenerationRequest(
        "a red apple", negative_prompt="a dog", blend=(BlendEntry(names[0], 0.8),), steps=4, guidance_scale=6.0, seed=5
    )
    asked = [
        replace(plain, sampler=sampler, timesteps=(999, 800, 400, 30))
        for sampler in Sampler
        if takes_timesteps(sampler)
    ]
    asked += [replace(plain, sampler=Sampler.DDIM, guidance_rescale=r) for r in (0.0, 0.7, 1.0)]
    drawn = server.draw(asked)
    assert len({picture.tobytes() for picture in drawn}) == len(asked) == 9
    for request, got in zip(asked, drawn, strict=True):
        assert distance(got, peer.draw(request)) <= 1, request


def test_sizes_the_unet_cannot_halve_evenly(pair: tuple[Any, Peer, list[str]]) -> None:
    server, peer, names = pair
    blend = (BlendEntry(names[0], 0.5),)
    request = GenerationRequest(
        "a dog", blend=blend, sampler=Sampler.DDIM, steps=3, guidance_scale=3.0, seed=1, width=72, height=56
    )
    (got,) = server.draw([request])
    assert got.shape == (56, 72, 3) and distance(got, peer.draw(request)) <= 1
