"""With --deterministic a picture has the same bits alone and in any company."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from company import POOL, adapters, random_request, stream

from loramux_server.engine.engine import Engine
from loramux_server.errors import Incompatible
from loramux_server.requests import BlendEntry, GenerationRequest

NAMES = ("everything", "attention", "convolution")


@pytest.fixture(params=["tiny_base", pytest.param("built_in_base", marks=pytest.mark.long)])
def fixed(request: pytest.FixtureRequest, make_server: Callable[..., Any], tmp_path: Path) -> Any:
    """A pool that holds few of its adapters."""
    base = request.getfixturevalue(request.param)
    server = make_server(base, deterministic=True, deterministic_rank=64)
    server.publish(adapters(base, tmp_path, 0.3))
    for group in server.app.engine.groups.values():
        group.open(POOL, torch.device("cpu"), 64)
    return server


def test_bits_do_not_depend_on_the_company(fixed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    forward = Engine._forward

    def watched(engine: Engine, asked: Any) -> Any:
        sizes.append((len(asked), len({str(row.entries) for row in asked})))
        return forward(engine, asked)

    monkeypatch.setattr(Engine, "_forward", watched)
    dice = random.Random(5)
    asked = [random_request(dice, seed) for seed in range(24)]
    company = stream(fixed, asked, dice)
    assert len({rows for rows, _ in sizes}) >= 3 and max(rows for rows, _ in sizes) == 4
    assert sum(blends >= 2 for _, blends in sizes) >= 15, "the forwards mixed nothing"
    registry = fixed.app.metrics.registry
    assert registry.get_sample_value("loramux_adapter_cache_evictions_total", {"tier": "device", "reason": "room"}) >= 3
    assert registry.get_sample_value("loramux_requests_total", {"outcome": "cancelled"}) >= 3
    dice.shuffle(order := list(range(24)))
    again = dict(zip(order, stream(fixed, [asked[i] for i in order], dice), strict=True))
    for i, request in enumerate(asked):
        (alone,) = fixed.draw([request])
        assert np.array_equal(alone, company[i]) and np.array_equal(alone, again[i]), request


def test_forwards_have_one_shape(fixed: Any) -> None:
    everything, attention = BlendEntry("everything", 1.0), BlendEntry("attention", 0.5)
    request = GenerationRequest("a dog", seed=1, steps=2, guidance_scale=1.0, blend=(everything, attention))
    fixed.draw([request])
    fixed.forwards.clear()
    fixed.draw([request])
    assert {(t.rows, t.width) for forward in fixed.forwards for t in forward.values()} == {(4, 64)}


def test_a_blend_of_more_ranks_is_refused(
    server_class: Any, three_adapters: Any, tiny_base: Path, tmp_path: Path
) -> None:
    server = server_class(str(tiny_base), tmp_path / "store", deterministic=True, deterministic_rank=16)
    server.publish(three_adapters(tiny_base, tmp_path, 0.3))
    blend = tuple(BlendEntry(name, 1.0) for name in NAMES)
    with pytest.raises(Incompatible, match=r"total rank \d+ in \S+, at most 16 fits"):
        server.admission.admit(GenerationRequest("a dog", blend=blend))
    assert server.admission.base.max_rank == 16
    server.close()
