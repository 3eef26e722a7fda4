"""What is kept of texts, embeddings and cross-attention keys and values: every part of a key matters, memory stays
bounded, and no picture depends on what was kept."""

import gc
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from loramux_server.engine.blends import PlacedBlend
from loramux_server.engine.bytes_lru import BytesLru
from loramux_server.engine.text_projections import Projected, TextProjections
from loramux_server.metrics import Metrics
from loramux_server.requests import BlendEntry, GenerationRequest, Job, LongPrompt, PartWeights, PromptSyntax, TextMode

ONE, OTHER, THIRD = "everything", "attention", "convolution"
LONG = ", ".join(["a red apple beside a dog"] * 12)
PLAIN = GenerationRequest("a dog", seed=1, steps=3)
OFF_IN_TEXT = PartWeights(text_encoder=0.0)


def count(server: Any, what: str, cache: str) -> float:
    return server.app.metrics.registry.get_sample_value(f"loramux_text_cache_{what}", {"cache": cache}) or 0.0


def distance(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


# bounded by bytes


@dataclass(frozen=True)
class Value:
    nbytes: int


@settings(max_examples=50)
@given(st.integers(0, 12), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=40))
def test_the_cache_is_a_list_of_the_last_used_that_fit(budget: int, asked: list[tuple[int, int]]) -> None:
    metrics, want = Metrics(), OrderedDict[int, Value]()
    cache = BytesLru[Value]("prompt", budget, metrics)
    counts = {"hits": 0, "misses": 0, "evictions": 0}
    for key, size in asked:
        if key in want:
            counts["hits"] += 1
            want.move_to_end(key)
        else:
            counts["misses"] += 1
            if size <= budget:
                want[key] = Value(size)
                while sum(value.nbytes for value in want.values()) > budget:
                    want.popitem(last=False)
                    counts["evictions"] += 1
        got = cache.get(key, lambda size=size: Value(size))
        assert got.nbytes == (want[key].nbytes if key in want else size)
        assert len(cache) == len(want) and cache.nbytes == sum(value.nbytes for value in want.values()) <= budget
    for name, value in counts.items():
        assert metrics.registry.get_sample_value(f"loramux_text_cache_{name}_total", {"cache": "prompt"}) == value
    assert (metrics.registry.get_sample_value("loramux_text_cache_bytes", {"cache": "prompt"}) or 0) == cache.nbytes


# embeddings of prompts


def placed(server: Any, request: GenerationRequest) -> tuple[Job, PlacedBlend]:
    """The request resolved, and its blend with the rows of its adapters, which stay on the device."""
    job = server.admission.admit(request)
    rows = server.app.engine.load(job).result(20).rows
    return job, PlacedBlend(tuple((weighted, rows[weighted.version.digest]) for weighted in job.blend))


def embedded(server: Any, request: GenerationRequest) -> torch.Tensor:
    job, blend = placed(server, request)
    with torch.inference_mode():
        return server.app.engine.conditioner.encode([(job.prompt, blend)], job.text_mode)[0]


WEIGHED = replace(PLAIN, prompt=f"a (red:1.5) {LONG}", blend=(BlendEntry(ONE, 0.8), BlendEntry(OTHER, 0.5)))
OTHER_EMBEDDINGS = {
    "text": replace(WEIGHED, prompt=f"a (blue:1.5) {LONG}"),
    "syntax": replace(WEIGHED, text_mode=TextMode(PromptSyntax.PLAIN)),
    "long prompt": replace(WEIGHED, text_mode=TextMode(long_prompt=LongPrompt.CUT)),
    "clip skip": replace(WEIGHED, text_mode=TextMode(clip_skip=1)),
    "digest": replace(WEIGHED, blend=(BlendEntry(THIRD, 0.8), BlendEntry(OTHER, 0.5))),
    "weight": replace(WEIGHED, blend=(BlendEntry(ONE, 0.7), BlendEntry(OTHER, 0.5))),
    "weight in the encoder": replace(WEIGHED, blend=(BlendEntry(ONE, 0.8, OFF_IN_TEXT), BlendEntry(OTHER, 0.5))),
    "no blend": replace(WEIGHED, blend=()),
}


def test_another_part_of_the_key_is_another_embedding(server: Any) -> None:
    first = embedded(server, WEIGHED)
    for part, request in OTHER_EMBEDDINGS.items():
        before = count(server, "misses_total", "prompt")
        other = embedded(server, request)
        assert count(server, "misses_total", "prompt") == before + 1, part
        assert other.shape != first.shape or float((other - first).abs().max()) > 1e-3, part
    before = count(server, "misses_total", "prompt")
    assert torch.equal(embedded(server, WEIGHED), first)
    assert count(server, "misses_total", "prompt") == before and count(server, "hits_total", "prompt") == 1


def test_what_leaves_the_text_encoder_alone_shares_its_embeddings(server: Any) -> None:
    first = embedded(server, PLAIN)
    entries = [
        BlendEntry(ONE, 0.8, OFF_IN_TEXT),
        BlendEntry(OTHER, 0.0),
        BlendEntry(THIRD, 1.0, PartWeights(text_encoder=0.0, unet=2.0), ((0.5, 0.0), (0.5, 1.0))),
    ]
    for entry in entries:
        assert torch.equal(embedded(server, replace(PLAIN, blend=(entry,))), first)
    assert (count(server, "misses_total", "prompt"), count(server, "hits_total", "prompt")) == (1, 3)


def test_text_encoders_share_one_budget(make_server: Callable[..., Any], tiny_sdxl: Path) -> None:
    """Of two encoders' embeddings of one text both fit; of two texts' the older are put out, in both."""
    size = 77 * 4 * (32 + 40) + 4 * 24  # tokens, fp32, two widths; the second's projection
    server = make_server(tiny_sdxl, prompt_cache_bytes=int(1.5 * size))
    first = embedded(server, PLAIN)
    assert count(server, "bytes", "prompt") == size
    assert torch.equal(embedded(server, PLAIN), first) and count(server, "hits_total", "prompt") == 2
    embedded(server, replace(PLAIN, prompt="a cat"))
    assert count(server, "evictions_total", "prompt") >= 1 and count(server, "bytes", "prompt") <= 1.5 * size
    assert torch.equal(embedded(server, PLAIN), first), "what was put out is made again"


# keys and values


def projected(server: Any, request: GenerationRequest) -> Projected | None:
    """Of the request's prompt."""
    job, blend = placed(server, request)
    with torch.inference_mode():
        text, _ = server.app.engine.conditioner.encode([(job.prompt, blend)], job.text_mode)
        return server.app.engine.texts.of(text, [blend])[0]


def differ(one: Projected, other: Projected) -> bool:
    pairs = zip(one.tensors, other.tensors, strict=True)
    return any(a.shape != b.shape or float((a - b).abs().max()) > 1e-3 for a, b in pairs)


def in_unet(adapter: str, weight: float, unet: float = 1.0, **blocks: float) -> BlendEntry:
    """An adapter that acts in the UNet alone, so that texts are the same."""
    named = tuple((block.replace("_", "."), factor) for block, factor in blocks.items())
    return BlendEntry(adapter, weight, PartWeights(unet=unet, text_encoder=0.0, blocks=named))


BLENDED = replace(PLAIN, blend=(in_unet(ONE, 0.8, mid=0.5), in_unet(OTHER, 0.5)))
OTHER_KEYS = {
    "text": replace(BLENDED, prompt="a cat"),
    "length": replace(BLENDED, prompt=LONG),
    "clip skip": replace(BLENDED, text_mode=TextMode(clip_skip=1)),
    "weight in the text encoder": replace(BLENDED, blend=(BlendEntry(ONE, 0.8), in_unet(OTHER, 0.5))),
    "digest": replace(BLENDED, blend=(in_unet(OTHER, 0.8, mid=0.5), in_unet(ONE, 0.5))),
    "weight": replace(BLENDED, blend=(in_unet(ONE, 0.7, mid=0.5), in_unet(OTHER, 0.5))),
    "weight in the UNet": replace(BLENDED, blend=(in_unet(ONE, 0.8, unet=0.5, mid=0.5), in_unet(OTHER, 0.5))),
    "weight in a block": replace(BLENDED, blend=(in_unet(ONE, 0.8, mid=0.4), in_unet(OTHER, 0.5))),
    "no blend": replace(BLENDED, blend=()),
}
SAME_KEYS = {
    "the same": BLENDED,
    "another seed": replace(BLENDED, seed=9, steps=8, guidance_scale=1.0),
    "the same products": replace(BLENDED, blend=(in_unet(ONE, 1.6, unet=0.5, mid=0.5), in_unet(OTHER, 0.5))),
    "a block without cross-attention": replace(
        BLENDED, blend=(in_unet(ONE, 0.8, mid=0.5, down_1=3.0), in_unet(OTHER, 0.5))
    ),
    "an adapter of other layers": replace(
        BLENDED, blend=(*BLENDED.blend, replace(in_unet(THIRD, 1.0), schedule=((0.5, 0.0), (0.5, 1.0))))
    ),
    "an adapter that is off": replace(BLENDED, blend=(*BLENDED.blend, in_unet(THIRD, 0.0))),
}  # fmt: skip


def test_another_part_of_the_key_is_other_keys_and_values(server: Any) -> None:
    first = projected(server, BLENDED)
    assert first is not None
    for part, request in OTHER_KEYS.items():
        other = projected(server, request)
        assert other is not None and other is not first and differ(first, other), part
    for part, request in SAME_KEYS.items():
        assert projected(server, request) is first, part
    assert count(server, "misses_total", "cross_attention") == 1 + len(OTHER_KEYS)
    assert count(server, "hits_total", "cross_attention") == len(SAME_KEYS)


def test_a_blend_that_changes_with_progress_has_none(server: Any) -> None:
    late = replace(in_unet(ONE, 0.8), schedule=((0.5, 0.0), (0.5, 1.0)))
    assert projected(server, replace(PLAIN, blend=(late, in_unet(OTHER, 0.5)))) is None


def test_keys_and_values_are_products_of_the_merged_weights(
    server: Any, tiny_base: Path, three_adapters: Any, tmp_path: Path
) -> None:
    """Against W0 + sum s B A in float64, out of the adapters' own files."""
    weights = load_file(tiny_base / "unet" / "diffusion_pytorch_model.safetensors")
    files = {a.name: load_file(a.file) for a in three_adapters(tiny_base, tmp_path, 0.5)}
    wanted = ("attn2.to_k.weight", "attn2.to_v.weight")
    names = [name.removesuffix(".weight") for name in weights if name.endswith(wanted)]
    got, text = projected(server, BLENDED), embedded(server, BLENDED)[0].double()
    assert got is not None and len(got.tensors) == len(names) > 4
    wants: list[torch.Tensor] = []
    for name in names:
        merged = weights[f"{name}.weight"].double()
        for adapter, scale in ((ONE, 0.8 * (0.5 if "mid" in name else 1.0) * 2 / 4), (OTHER, 0.5)):  # alpha over rank
            a, b = (files[adapter][f"unet.{name}.lora_{part}.weight"].double() for part in "AB")
            merged = merged + scale * b @ a
        wants.append(text @ merged.T)
    for tensor in got.tensors:
        same = [float((tensor[0] - want).norm() / want.norm()) for want in wants if want.shape == tensor.shape[1:]]
        assert min(same) < 1e-6


@pytest.fixture(scope="module")
def asked() -> list[GenerationRequest]:
    """Blends, lengths and guidance side by side; two pictures share a text, a third its blend."""
    blends = (BlendEntry(ONE, 0.8),), (BlendEntry(OTHER, 0.6), BlendEntry(THIRD, 0.4))
    return [
        replace(PLAIN, blend=blends[0], num_images=2),
        replace(PLAIN, blend=blends[1], prompt=LONG, steps=4, guidance_scale=4.0),
        replace(PLAIN, blend=blends[0], prompt="a cat", guidance_scale=1.0, seed=4),
        replace(PLAIN, blend=blends[1], negative_blend=(), negative_prompt="a cat", seed=5),
        replace(PLAIN, seed=6),
    ]


def test_pictures_are_those_of_a_server_that_keeps_nothing(
    make_server: Callable[..., Any],
    three_adapters: Any,
    tiny_base: Path,
    tmp_path: Path,
    asked: list[GenerationRequest],
) -> None:
    nothing = {"prompt_cache_bytes": 0, "cross_attention_cache_bytes": 0}
    keeping, bare = make_server(tiny_base), make_server(tiny_base, **nothing)
    for server in (keeping, bare):
        server.publish(three_adapters(tiny_base, tmp_path, 0.5))
    want = [bare.draw([request])[0] for request in asked]
    assert count(bare, "hits_total", "cross_attention") == count(bare, "hits_total", "prompt") == 0
    alone = [keeping.draw([request])[0] for request in asked]
    keeping.forwards.clear()
    hits = count(keeping, "hits_total", "cross_attention")
    company = keeping.draw(asked)
    assert count(keeping, "hits_total", "cross_attention") - hits >= 2 * 3 * (len(asked) - 1)
    assert max(len({str(t.entries) for t in f.values()}) for f in keeping.forwards) > 1
    for picture, *others in zip(want, alone, company, strict=True):
        assert all(distance(picture, other) <= 1 for other in others)
    assert len({picture.tobytes() for picture in want}) == len(want), "a blend or prompt does nothing"


def test_with_deterministic_no_bit_depends_on_what_is_kept(
    make_server: Callable[..., Any],
    three_adapters: Any,
    tiny_base: Path,
    tmp_path: Path,
    asked: list[GenerationRequest],
) -> None:
    fixed = {"deterministic": True, "deterministic_rank": 64}
    keeping, bare = make_server(tiny_base, **fixed), make_server(tiny_base, cross_attention_cache_bytes=0, **fixed)
    scheduled = replace(PLAIN, blend=(BlendEntry(ONE, 0.8, schedule=((0.5, 0.0), (0.5, 1.0))),), seed=8)
    for server in (keeping, bare):
        server.publish(three_adapters(tiny_base, tmp_path, 0.3))
    shapes: list[int] = []
    for layers in texts_of(keeping)._layers:
        layers.key.register_forward_pre_hook(lambda _, args: shapes.append(len(args[0])))
    want = bare.draw([*asked, scheduled])
    got = keeping.draw([*asked, scheduled])  # rows that have none take others with them
    assert count(keeping, "hits_total", "cross_attention") > 0 < count(keeping, "misses_total", "cross_attention")
    assert all(np.array_equal(one, other) for one, other in zip(want, got, strict=True))
    assert np.array_equal(keeping.draw([asked[4]])[0], want[4]), "a plain picture alone"
    assert set(shapes) == {4}, "texts are projected in the shape of every forward"


def test_a_forward_without_adapters_computes_its_own(server: Any) -> None:
    """So that it has the bits of the base's own forward, whatever its size."""
    server.draw([PLAIN])
    assert count(server, "hits_total", "cross_attention") == 0
    assert count(server, "misses_total", "cross_attention") == 2 + 2 * 3


# freed


def texts_of(server: Any) -> TextProjections:
    return server.app.engine.texts


def freed(server: Any) -> Callable[[], bool]:
    return lambda: texts_of(server).nbytes == 0 and count(server, "bytes", "cross_attention") == 0


def begun(server: Any, requests: Sequence[GenerationRequest]) -> list[Job]:
    engine = server.app.engine
    jobs = [server.admission.admit(request) for request in requests]
    for job in jobs:
        engine.begin(job, engine.load(job).result(20))
    return jobs


ROW_BYTES = 77 * 4 * 2 * (16 + 32 + 16 * 2)
"""Of keys and values on the tiny base: tokens, fp32, k and v, one cross-attention down, one in the middle, two up."""


def test_memory_follows_the_pictures_in_flight(server: Any, wait_for: Any) -> None:
    two = replace(BLENDED, num_images=2)
    jobs = begun(server, [two, replace(two, seed=5)])
    assert texts_of(server).nbytes == count(server, "bytes", "cross_attention") == 2 * ROW_BYTES, "they share two texts"
    engine = server.app.engine
    keys = {job.id: [key for key in engine._images if key.job == job.id] for job in jobs}
    engine.drop(keys[jobs[0].id])
    assert texts_of(server).nbytes == 2 * ROW_BYTES
    engine.drop(keys[jobs[1].id][:1])
    assert texts_of(server).nbytes == 2 * ROW_BYTES
    engine.drop(keys[jobs[1].id][1:])
    gc.collect()
    assert freed(server)()


def test_freed_when_finished_cancelled_or_failed(server: Any, wait_for: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server.draw([BLENDED, replace(BLENDED, prompt="a cat")])
    wait_for(freed(server))
    running = server.submit(replace(BLENDED, steps=200))
    wait_for(lambda: texts_of(server).nbytes > 0)
    server.runner.cancel(running.job.id)
    wait_for(freed(server))
    monkeypatch.setattr(
        server.app.engine, "_forward", lambda rows: torch.full((len(rows), *rows[0].latents.shape[1:]), torch.nan)
    )
    with pytest.raises(Exception, match="non-finite"):
        server.draw([BLENDED])
    wait_for(freed(server))


def test_a_picture_that_does_not_fit_computes_its_own(
    make_server: Callable[..., Any], three_adapters: Any, tiny_base: Path, tmp_path: Path
) -> None:
    server = make_server(tiny_base, cross_attention_cache_bytes=3 * ROW_BYTES)
    server.publish(three_adapters(tiny_base, tmp_path, 0.5))
    other = replace(BLENDED, prompt="a cat", negative_prompt="a house", seed=2)
    alone = [server.draw([request])[0] for request in (BLENDED, other)]
    begun(server, [BLENDED, other])
    assert texts_of(server).nbytes == 3 * ROW_BYTES
    images = server.app.engine._images
    assert [[row is None for row in image.projected] for image in images.values()] == [[False, False], [False, True]]
    server.app.engine.drop(list(images))
    together = server.draw([BLENDED, other])
    assert max(distance(a, b) for a, b in zip(alone, together, strict=True)) <= 1


def test_a_device_that_is_full_keeps_none(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (want,) = server.draw([BLENDED])

    def full(*_: object) -> Projected:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(texts_of(server), "_projected", full)
    (got,) = server.draw([BLENDED])
    assert distance(want, got) <= 1 and texts_of(server).nbytes == 0


# row numbers are used again


def test_another_adapter_in_the_same_rows_is_never_taken_for_the_first(server_with_a_small_pool: Any) -> None:
    """A, B in A's rows, A again: what was kept of A is A's, of B is B's."""
    server = server_with_a_small_pool
    asked = [replace(PLAIN, blend=(in_unet(name, 1.0),)) for name in (OTHER, ONE, OTHER)]
    asked_in_text = [replace(PLAIN, blend=(BlendEntry(name, 1.0),)) for name in (OTHER, ONE, OTHER)]
    rows: list[set[int]] = []
    kept: list[Projected] = []
    texts: list[torch.Tensor] = []
    for request, in_text in zip(asked, asked_in_text, strict=True):
        kept.append(cast("Projected", projected(server, request)))
        texts.append(embedded(server, in_text))
        _, blend = placed(server, request)
        rows.append(set(blend.adapters[0][1]["unet.attention"]))
        adapters = server.app.engine.adapters
        for resident in adapters.device.residents.values():
            if resident.users:
                resident.users = 1
                adapters.device.let_go(resident.digest)
    assert rows[1] < rows[0] == rows[2], "the rows were not used again"
    assert kept[2] is kept[0] and kept[1] is not kept[0] and differ(kept[0], kept[1])
    assert torch.equal(texts[0], texts[2]) and not torch.allclose(texts[0], texts[1], atol=1e-3)
