"""The picture a request gets never depends on its company, and other promises of the shared forward."""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from company import POOL, adapters, random_request, stream

from loramux_kernels import Tables
from loramux_server.engine.engine import distinct_blends
from loramux_server.engine.load_base import load_base
from loramux_server.engine.lora_layers import wrap
from loramux_server.requests import BlendEntry, GenerationRequest

COMPOSITIONS = 50


@pytest.fixture
def stream_server(make_server: Callable[..., Any], tiny_base: Path, tmp_path: Path) -> Any:
    """A pool that holds few of its adapters, and forwards that hold few of its pictures."""
    server = make_server(tiny_base, max_rows=12)
    server.publish(adapters(tiny_base, tmp_path))
    for group in server.app.engine.groups.values():
        group.open(POOL, torch.device("cpu"))
    return server


def distance(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("count", [90, pytest.param(600, marks=pytest.mark.long)])
def test_every_picture_is_the_same_alone_and_in_company(stream_server: Any, count: int) -> None:
    """A stream of requests that join and leave between steps, put each other's adapters out, and are cancelled."""
    server, dice = stream_server, random.Random(11)
    asked = [random_request(dice, seed) for seed in range(count)]
    company = stream(server, asked, dice)
    forwards = list(server.forwards)
    assert len({_signature(forward) for forward in forwards}) >= COMPOSITIONS
    mixed = [distinct_blends(forward, max(t.rows for t in forward.values())) >= 3 for forward in forwards if forward]
    assert sum(mixed) >= count / 2 and np.mean(mixed) >= 0.4, "few forwards mixed blends"
    assert evictions(server) >= 8, "the adapters were not swapped"
    assert cancelled(server) >= count / 10, "hardly anything was cancelled"
    alone = [server.draw([request])[0] for request in asked]
    assert max(distance(one, other) for one, other in zip(alone, company, strict=True)) <= 1
    blended = [request.blend != () for request in asked]
    plain = [server.draw([replace(request, blend=())])[0] for request in compress(asked, blended)]
    moved = [distance(one, other) > 1 for one, other in zip(plain, compress(alone, blended), strict=True)]
    assert np.mean(moved) >= 0.8, "hardly any blend did anything"


def _signature(forward: Mapping[str, Tables]) -> tuple[bytes, ...]:
    return tuple(t.idx.numpy().tobytes() + t.scale.numpy().tobytes() for t in forward.values())


def cancelled(server: Any) -> float:
    return server.app.metrics.registry.get_sample_value("loramux_requests_total", {"outcome": "cancelled"}) or 0.0


def test_eight_blends_share_one_forward(server: Any) -> None:
    one, two, three = "everything", "attention", "convolution"
    blends: list[dict[str, float]] = [
        {}, {one: 1.0}, {two: 1.0}, {three: 1.0}, {one: 0.5}, {one: 0.5, two: 0.5}, {two: 1.0, three: 0.3},
        {one: 0.2, two: 0.3, three: 0.4},
    ]  # fmt: skip
    asked = [
        GenerationRequest("a dog", blend=tuple(BlendEntry(n, w) for n, w in blend.items()), steps=12 + i, seed=1)
        for i, blend in enumerate(blends)
    ]
    server.draw(asked[-1:])  # brings all three adapters in, so that nobody waits for a load
    pictures = server.draw(asked)
    assert len({picture.tobytes() for picture in pictures}) == 8
    registry = server.app.metrics.registry
    assert registry.get_sample_value("loramux_distinct_blends_per_forward_max") == 8
    assert registry.get_sample_value("loramux_distinct_blends_per_forward_bucket", {"le": "7.0"}) < (
        registry.get_sample_value("loramux_distinct_blends_per_forward_count")
    )


def test_wrapping_changes_no_bit_of_the_base(tiny_base: Path) -> None:
    plain = load_base(tiny_base, "tiny", torch.device("cpu"))
    latents, text = torch.randn(3, 4, 16, 16), torch.randn(3, 77, 32)
    steps = torch.tensor([1.0, 500.0, 999.0])
    with torch.inference_mode():
        before = plain.unet(latents, steps, text).sample
        groups = wrap({"unet": plain.unet})
        for group in groups.values():
            group.open(8, torch.device("cpu"))
        after = plain.unet(latents, steps, text).sample
    assert sum(len(group.layers) for group in groups.values()) > 50
    assert torch.equal(before, after)


def test_a_batch_without_adapters_hands_the_op_no_tables(make_server: Callable[..., Any], tiny_base: Path) -> None:
    server = make_server(tiny_base)
    server.draw([GenerationRequest("a dog", seed=1, steps=2)])
    assert server.forwards and not any(server.forwards)


SWAPS = tuple(
    GenerationRequest("a dog", blend=(BlendEntry(name, 1.0),), seed=1, steps=3)
    for name in ("everything", "attention", "convolution")
)


def evictions(server: Any) -> float:
    name = "loramux_adapter_cache_evictions_total"
    return server.app.metrics.registry.get_sample_value(name, {"tier": "device", "reason": "room"}) or 0.0


def test_pictures_do_not_depend_on_earlier_swaps(server_with_a_small_pool: Any) -> None:
    server = server_with_a_small_pool
    first = [server.draw([request])[0] for request in SWAPS]
    again = [server.draw([request])[0] for request in reversed(SWAPS)][::-1]
    assert evictions(server) >= 3
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))


def test_jobs_that_do_not_fit_together_wait_for_each_other(server_with_a_small_pool: Any) -> None:
    server = server_with_a_small_pool
    alone = [server.draw([request])[0] for request in SWAPS]
    before = evictions(server)
    together = server.draw([*SWAPS * 4, GenerationRequest("a dog", seed=1, steps=3)])
    assert evictions(server) > before
    assert max(distance(one, other) for one, other in zip(alone * 4, together[:-1], strict=True)) <= 1


def test_layer_names_are_those_that_adapter_files_use(tiny_base: Path) -> None:
    plain = load_base(tiny_base, "tiny", torch.device("cpu"))
    groups = wrap(plain.models)
    assert set(groups) == {"unet.attention", "unet.feed_forward", "unet.convolution", "unet.rest", "text_encoder"}
    assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj" in groups["text_encoder"].layers
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0" in groups["unet.attention"].layers
    assert "unet.mid_block.attentions.0.proj_in" in groups["unet.feed_forward"].layers
    assert "unet.conv_out" in groups["unet.convolution"].layers
    assert "unet.mid_block.resnets.0.time_emb_proj" in groups["unet.rest"].layers
