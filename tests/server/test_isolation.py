"""The picture a request gets never depends on its company, and other promises of the shared forward."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loramux_kernels import Tables
from loramux_server.engine.load_base import load_base
from loramux_server.engine.lora_layers import wrap
from loramux_server.requests import BlendEntry, GenerationRequest, Sampler

COMPOSITIONS = 50
STRENGTH = 0.5


@pytest.fixture(scope="module")
def stream_server(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, three_adapters: Any, server_class: Any
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("isolation")
    server = server_class(str(tiny_base), folder / "store", max_rows=12)
    server.publish(three_adapters(tiny_base, folder, STRENGTH))
    yield server
    server.close()


def random_request(dice: random.Random, seed: int) -> GenerationRequest:
    names = dice.sample(["everything", "attention", "convolution"], dice.choice([0, 1, 1, 2, 3]))
    return GenerationRequest(
        prompt=dice.choice(["a red apple", "a dog", "a house on a blue background"]),
        negative_prompt=dice.choice(["", "a cat"]),
        blend=tuple(BlendEntry(name, dice.choice([-0.6, 0.3, 0.8, 1.0])) for name in names),
        sampler=dice.choice(list(Sampler)),
        steps=dice.randint(3, 6),
        guidance_scale=dice.choice([1.0, 2.0, 5.0]),
        seed=seed,
    )


def distance(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def ranks(tables: Mapping[str, Tables]) -> set[tuple[int, ...]]:
    """Distinct (total rank by group) of the rows of one forward."""
    columns = [table.nrank.tolist() for table in tables.values()]
    return set(zip(*columns, strict=True))


def test_every_picture_is_the_same_alone_and_in_company(stream_server: Any) -> None:
    """A stream of requests, joining and leaving between steps: over 50 different companies a forward."""
    server, dice = stream_server, random.Random(11)
    asked = [random_request(dice, seed) for seed in range(110)]
    names = ("everything", "attention", "convolution")
    server.draw([GenerationRequest("a dog", blend=tuple(BlendEntry(n, 1.0) for n in names), steps=1)])  # loads them
    server.forwards.clear()
    company = server.draw(asked)
    assert len({_signature(forward) for forward in server.forwards}) >= COMPOSITIONS
    mixed = [len(ranks(forward)) >= 3 for forward in server.forwards]
    assert np.mean(mixed) >= 0.9, "the forwards did not mix blends"
    alone = [server.draw([request])[0] for request in asked]
    assert max(distance(one, other) for one, other in zip(alone, company, strict=True)) <= 1
    plain = [server.draw([replace(request, blend=())])[0] for request in asked if request.blend]
    blended = [picture for request, picture in zip(asked, alone, strict=True) if request.blend]
    assert min(distance(one, other) for one, other in zip(plain, blended, strict=True)) > 1, "a blend did nothing"


def _signature(forward: Mapping[str, Tables]) -> tuple[bytes, ...]:
    return tuple(t.idx.numpy().tobytes() + t.scale.numpy().tobytes() for t in forward.values())


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
    return server.app.metrics.registry.get_sample_value(name, {"tier": "device"}) or 0.0


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
