"""What a picture will be, told while it is drawn."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from loramux_server.engine.load_base import load_base
from loramux_server.engine.previews import Previews, foreseen
from loramux_server.errors import InvalidRequest
from loramux_server.requests import BlendEntry, Done, GenerationRequest, ImageReady, Output, Preview, Sampler, Stepped

ASKED = GenerationRequest("a dog", seed=1, steps=6, output=Output(preview_every=2))


def told(server: Any, request: GenerationRequest, *kinds: type) -> list[Any]:
    handle = server.submit(request)
    handle.pictures()
    return [event for event in handle.events if isinstance(event, kinds)]


def test_previews_come_every_so_many_steps(server: Any) -> None:
    previews = told(server, replace(ASKED, num_images=2), Preview)
    assert sorted((p.index, p.step) for p in previews) == [(i, s) for i in (0, 1) for s in (2, 4)]
    for preview in previews:
        assert Image.open(io.BytesIO(preview.jpeg)).size == (16, 16)
    assert told(server, replace(ASKED, output=Output()), Preview) == []


def test_they_come_between_their_step_and_the_picture(server: Any) -> None:
    events = told(server, ASKED, Stepped, Preview, ImageReady, Done)
    places = {(type(e), getattr(e, "step", 0)): i for i, e in enumerate(events)}
    for step in (2, 4):
        assert places[Stepped, step] < places[Preview, step] < places[ImageReady, 0] < places[Done, 0]


@pytest.mark.parametrize("sampler", list(Sampler))
def test_the_last_preview_is_the_picture_seen_from_afar(
    make_server: Any, built_in_base: Path, sampler: Sampler
) -> None:
    """On the base that ships: the preview is nearer to its own picture, made small, than to another one."""
    server = make_server("builtin")
    asked = [
        replace(ASKED, prompt=prompt, sampler=sampler, steps=8, output=Output(preview_every=7), num_images=1,
                blend=(BlendEntry("ink", 0.5),))
        for prompt in ("a red apple", "a blue car")
    ]  # fmt: skip
    pairs = []
    for request in asked:
        *previews, ready = told(server, request, Preview, ImageReady)
        small = Image.open(io.BytesIO(ready.data)).resize(
            Image.open(io.BytesIO(previews[-1].jpeg)).size, Image.Resampling.BOX
        )
        pairs.append(
            (np.asarray(Image.open(io.BytesIO(previews[-1].jpeg))).astype(float), np.asarray(small).astype(float))
        )
    (first, first_small), (second, second_small) = pairs
    for own, other, preview in ((first_small, second_small, first), (second_small, first_small, second)):
        assert np.abs(preview - own).mean() < 0.6 * np.abs(preview - other).mean()


@pytest.mark.parametrize("alpha", [0.9, 0.3, 0.01])
def test_what_is_foreseen_is_what_noise_was_added_to(alpha: float) -> None:
    x0, noise = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    sample = alpha**0.5 * x0 + (1 - alpha) ** 0.5 * noise
    velocity = alpha**0.5 * noise - (1 - alpha) ** 0.5 * x0
    assert torch.allclose(foreseen(sample, noise, alpha, "epsilon"), x0)
    assert torch.allclose(foreseen(sample, velocity, alpha, "v_prediction"), x0)


def test_the_map_is_fitted_once_and_to_this_decoder(built_in_base: Path) -> None:
    vae = load_base(built_in_base, "builtin", torch.device("cpu")).vae
    previews, decoded = Previews(vae), []
    decode = vae.decode

    def counted(*args: Any, **kwargs: Any) -> Any:
        decoded.append(args)
        return decode(*args, **kwargs)

    vae.decode = counted
    one = previews.jpeg(torch.randn(1, 4, 8, 12))
    previews.jpeg(torch.randn(1, 4, 8, 12))
    assert len(decoded) == 1 and Image.open(io.BytesIO(one)).size == (12, 8)


def test_a_preview_that_fails_does_not_fail_its_picture(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(latents: torch.Tensor) -> bytes:
        raise RuntimeError("no")

    monkeypatch.setattr(server.app.engine, "preview", broken)
    assert [type(e) for e in told(server, ASKED, Preview, ImageReady)] == [ImageReady]


def test_a_bad_distance_is_refused(server: Any) -> None:
    with pytest.raises(InvalidRequest, match="preview_every: is -1, expected 0 to 200"):
        server.admission.admit(replace(ASKED, output=Output(preview_every=-1)))
