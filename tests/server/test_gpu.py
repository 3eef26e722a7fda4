"""The server on a card: the built-in base with its own adapters, in fp16 and with Triton's kernels.

What a picture may differ by is told in decibels (peak signal-to-noise ratio of 8-bit pixels): fp16 rounds products of
other batch sizes otherwise. 50 dB are differences of 0.8/255 on the average."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from test_captured import how

from loramux_kernels import default_impl
from loramux_server.requests import BlendEntry, GenerationRequest, ImageKey
from loramux_server.settings import BUILTIN

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or default_impl(torch.device("cuda")) != "triton",
        reason="no card of 8.0 or newer",
    ),
]

NAMES = ("glossy", "ink", "noto", "zib")
PROMPTS = ("a red apple", "a dog", "a house", "a fish")
PAIRS = tuple(combinations(NAMES, 2))
ASKED = [
    GenerationRequest(
        PROMPTS[i % 4],
        blend=tuple(BlendEntry(name, (0.3, 0.6, 0.9, 1.0)[i % 4]) for name in PAIRS[i % 6]) if i % 7 else (),
        steps=20,
        seed=i,
    )
    for i in range(8)
]
"""Eight pictures of seven blends; two have none."""
LEAST = 50.0


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    off = float(((one.astype(float) - other) ** 2).mean())
    return 99.0 if off == 0 else 10 * float(np.log10(255**2 / off))


@pytest.fixture
def card(make_server: Callable[..., Any]) -> Any:
    return make_server(BUILTIN, device="cuda")


def latents(server: Any, requests: list[GenerationRequest]) -> torch.Tensor:
    """Final latents of requests of equally many steps, all of whose forwards they share."""
    engine = server.app.engine
    jobs = [server.admission.admit(request) for request in requests]
    for job in jobs:
        engine.begin(job, engine.load(job).result())
    keys = [ImageKey(job.id, 0) for job in jobs]
    results = [engine.step(keys) for _ in range(jobs[0].sampling.evaluations)][-1]
    return torch.cat([result.latents for result in results])


def test_pictures_are_those_of_the_cpu(card: Any, make_server: Callable[..., Any]) -> None:
    want, got = make_server(BUILTIN).draw(ASKED), card.draw(ASKED)
    near = [psnr(*pair) for pair in zip(got, want, strict=True)]
    plain = card.draw([replace(request, blend=()) for request in ASKED])
    moved = [psnr(one, other) for one, other, request in zip(got, plain, ASKED, strict=True) if request.blend]
    print("against the CPU, dB:", [round(each, 1) for each in near])
    assert min(near) >= LEAST and max(moved) < 40, moved


def test_company_changes_less_than_rounding(card: Any) -> None:
    together = card.draw(ASKED)
    near = [psnr(card.draw([request])[0], picture) for request, picture in zip(ASKED, together, strict=True)]
    print("alone against company, dB:", [round(each, 1) for each in near])
    assert min(near) >= LEAST
    assert how(card.app.metrics)["replayed"] > 20


def test_captured_forwards_have_the_bits_of_launched_ones(card: Any, make_server: Callable[..., Any]) -> None:
    """The same rows in the same company: other blends, weights and none, adapters that come and go."""
    launched = make_server(BUILTIN, device="cuda", graphs=0, cross_attention_cache_bytes=0)
    orders = [ASKED[:4], ASKED[:4], ASKED[4:], ASKED[2:6], [replace(each, blend=()) for each in ASKED[:4]], ASKED[:4]]
    pictures = []
    for requests in orders:
        want, got = latents(launched, requests), latents(card, requests)
        assert torch.equal(got, want)
        pictures.append(got)
    assert not torch.equal(pictures[0], pictures[2]) and not torch.equal(pictures[0], pictures[4])
    ran = how(card.app.metrics)
    assert ran["captured"] >= 2 and ran["replayed"] > 4 * ran["launched"], ran


def test_deterministic_pictures_have_the_same_bits_in_any_company(make_server: Callable[..., Any]) -> None:
    server = make_server(BUILTIN, device="cuda", deterministic=True)
    assert server.app.engine.groups["unet.attention"].impl == "reference"
    together, reversed_ = server.draw(ASKED), server.draw(ASKED[::-1])[::-1]
    alone = [server.draw([request])[0] for request in ASKED]
    assert len({picture.tobytes() for picture in alone}) == len(ASKED)
    for one, two, three in zip(together, reversed_, alone, strict=True):
        assert np.array_equal(one, two) and np.array_equal(one, three)
