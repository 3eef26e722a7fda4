"""Weights by part of the base and by progress, and a blend of its own for the unconditional row."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_reference import Change, Dense
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from loramux_server.engine.blends import EVERYWHERE, NOTHING, Added, PlacedBlend, factor_at
from loramux_server.engine.lora_layers import block_of
from loramux_server.errors import Incompatible, InvalidRequest
from loramux_server.requests import BlendEntry, GenerationRequest, PartWeights, Sampler, Weighted
from loramux_store.record import UploadSpec

STEPS = 4
ASKED = GenerationRequest(
    "a red apple", negative_prompt="a dog", sampler=Sampler.DDIM, steps=STEPS, guidance_scale=4.0, seed=7
)
RANGE = ((0.25, 0.0), (0.25, 1.0), (0.75, 1.0), (0.75, 0.0))


# schedules


@pytest.mark.parametrize(
    "schedule,values",
    [
        ((), {0.0: 1, 0.5: 1, 1.0: 1}),
        (((0.5, 2.0),), {0.0: 2, 0.5: 2, 1.0: 2}),
        (((0.2, 0.0), (0.6, 1.0)), {0.0: 0, 0.2: 0, 0.4: 0.5, 0.6: 1, 0.9: 1}),
        (RANGE, {0.0: 0, 0.2: 0, 0.25: 1, 0.5: 1, 0.7499: 1, 0.75: 0, 0.9: 0}),
        (((0.0, 1.0), (1.0, -1.0)), {0.0: 1, 0.25: 0.5, 0.5: 0, 1.0: -1}),
    ],
)
def test_a_schedule_is_straight_between_its_points(schedule: Any, values: dict[float, float]) -> None:
    for progress, value in values.items():
        assert factor_at(schedule, progress) == pytest.approx(value)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(-16, 16)), min_size=1, max_size=6).map(
        lambda points: sorted(points, key=lambda point: point[0])
    ),
    st.floats(0, 1),
)
def test_a_schedule_never_leaves_its_points(schedule: list[tuple[float, float]], progress: float) -> None:
    factors = [factor for _, factor in schedule]
    assert min(factors) - 1e-9 <= factor_at(schedule, progress) <= max(factors) + 1e-9


def test_rows_that_are_off_are_left_out() -> None:
    rows = {"unet.attention": (3, 4), "unet.attention input scales": (7,), "text_encoder": (1,)}
    parts = PartWeights(unet=0.5, text_encoder=0.0, blocks=(("mid", 0.0), ("up.0", 2.0)))
    blend = PlacedBlend(((Weighted(None, 0.8, parts, RANGE), rows),))  # pyright: ignore[reportArgumentType]
    on = blend.at(0.5, ["unet.attention"])["unet.attention"]
    half, whole = (Added(rows=((3, scale), (4, scale)), inputs=((7, scale),)) for scale in (0.4, 0.8))
    assert on == {EVERYWHERE: half, "mid": NOTHING, "up.0": whole}
    assert set(blend.at(0.0, ["unet.attention"])["unet.attention"].values()) == {NOTHING}
    assert blend.in_text_encoder("text_encoder") == NOTHING


@pytest.mark.parametrize(
    "path,block",
    [
        ("unet.down_blocks.1.attentions.0.proj_in", "down.1"),
        ("unet.mid_block.resnets.0.conv1", "mid"),
        ("unet.up_blocks.10.x", "up.10"),
        ("unet.conv_in", EVERYWHERE),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", EVERYWHERE),
    ],
)
def test_blocks_of_paths(path: str, block: str) -> None:
    assert block_of(path) == block


# pictures


@pytest.fixture
def dense(server: Any, tiny_base: Path, three_adapters: Any, tmp_path: Path) -> Dense:
    changes: dict[str, dict[str, Change]] = {}
    for adapter in three_adapters(tiny_base, tmp_path, 0.5):
        spec = UploadSpec(name=adapter.name, validate_only=True)
        report = server.app.store.publish(adapter.file, spec).report
        (scale,) = {m.scale for m in report.matched}
        changes[adapter.name] = _changes(load_file(adapter.file), scale)
    return Dense(tiny_base, changes)


def _changes(tensors: dict[str, Tensor], scale: float) -> dict[str, Change]:
    """scale B A of every module."""
    found: dict[str, Change] = {}
    for path in (key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")):
        a, b = (tensors[f"{path}.lora_{side}.weight"].double().flatten(1) for side in "AB")
        found[f"{path}.weight"] = lambda before, delta=scale * (b @ a): delta.view(before.shape)
    return found


E, A, C = "everything", "attention", "convolution"
CASES = {
    "plain": {"blend": (BlendEntry(E, 0.8), BlendEntry(A, -0.5))},
    "unet only": {"blend": (BlendEntry(E, 0.8, PartWeights(text_encoder=0.0)),)},
    "text encoder only": {"blend": (BlendEntry(E, 0.8, PartWeights(unet=0.0)),)},
    "half in each": {"blend": (BlendEntry(E, 0.8, PartWeights(unet=0.5, text_encoder=-1.0)),)},
    "by block": {
        "blend": (
            BlendEntry(E, 0.8, PartWeights(blocks=(("down.0", 0.0), ("mid", 2.0), ("up.1", -0.7)))),
            BlendEntry(C, 1.0, PartWeights(unet=0.5, blocks=(("mid", 0.0), ("up.0", 1.5)))),
        )
    },
    "range": {"blend": (BlendEntry(E, 0.8, schedule=RANGE),)},
    "ramp": {"blend": (BlendEntry(E, 0.8, schedule=((0.0, 1.0), (1.0, 0.0))), BlendEntry(A, 0.7))},
    "ramp by block": {"blend": (BlendEntry(E, 0.8, PartWeights(blocks=(("mid", 3.0),)), ((0.0, 0.0), (1.0, 1.0))),)},
    "other negative": {"blend": (BlendEntry(E, 0.8),), "negative_blend": (BlendEntry(A, 1.0, schedule=RANGE),)},
    "no negative": {"blend": (BlendEntry(E, 0.8),), "negative_blend": ()},
    "only negative": {"negative_blend": (BlendEntry(C, 0.9),)},
}


def distance(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def test_pictures_equal_the_dense_reference_all_in_one_stream(server: Any, dense: Dense) -> None:
    asked = [replace(ASKED, **case) for case in CASES.values()]
    drawn = server.draw(asked)
    assert len({picture.tobytes() for picture in drawn}) == len(CASES), "two blends draw the same picture"
    (plain,) = server.draw([ASKED])
    for name, request, got in zip(CASES, asked, drawn, strict=True):
        assert distance(got, plain) >= 5, f"{name} does nothing"
        assert distance(got, dense.draw(request)) <= 1, name
    mixed = [forward for forward in server.forwards if any(" mid" in group for group in forward)]
    assert mixed and max(len(set(t.nrank.tolist())) for t in mixed[0].values()) >= 3, "the forwards mixed nothing"


def test_a_blend_that_is_off_launches_nothing(server: Any) -> None:
    off = BlendEntry(E, 0.8, PartWeights(text_encoder=0.0), ((0.5, 0.0), (0.5, 1.0)))
    server.draw([replace(ASKED, blend=(off,))])
    server.forwards.clear()
    server.draw([replace(ASKED, blend=(off,))])
    assert [bool(forward) for forward in server.forwards] == [False, False, True, True]


def test_progress_of_samplers_that_evaluate_a_timestep_twice(server: Any) -> None:
    """A weight belongs to the timestep that is evaluated, whatever the number of evaluations: t0 t1 t1 t2 t2 t3 t3."""
    on_late = BlendEntry(A, 1.0, PartWeights(text_encoder=0.0), ((0.5, 0.0), (0.5, 1.0)))
    for sampler, shown in ((Sampler.HEUN, [False] * 3 + [True] * 4), (Sampler.PNDM, [False] * 3 + [True] * 2)):
        server.draw([replace(ASKED, sampler=sampler, blend=(on_late,))])
        server.forwards.clear()
        server.draw([replace(ASKED, sampler=sampler, blend=(on_late,))])
        assert [bool(forward) for forward in server.forwards] == shown, sampler


def test_without_guidance_there_is_no_negative_row_to_load_adapters_for(server: Any) -> None:
    asked = replace(ASKED, guidance_scale=1.0, blend=(BlendEntry(A, 0.5),), negative_blend=(BlendEntry(C, 1.0),))
    assert server.admission.admit(asked).negative_blend is None
    (got,), (want,) = (server.draw([request]) for request in (asked, replace(asked, negative_blend=None)))
    assert np.array_equal(got, want)
    digests = {server.app.store.resolve(name).digest: name for name in (A, C)}
    assert [digests[digest] for digest in server.app.engine.adapters.device.residents] == [A]


@pytest.mark.parametrize(
    "entry,field,said",
    [
        (BlendEntry(A, 1.0, PartWeights(unet=17.0)), "part_weights.unet", "expected -16.0 to 16.0"),
        (BlendEntry(A, 1.0, PartWeights(text_encoder=float("nan"))), "part_weights.text_encoder", "is nan"),
        (
            BlendEntry(A, 1.0, PartWeights(blocks=(("down.7", 1.0),))),
            "part_weights.blocks[down.7]",
            "is no block of this base, expected one of down.0, down.1, mid, up.0, up.1",
        ),
        (BlendEntry(A, 1.0, schedule=((1.5, 1.0),)), "schedule[0].progress", "expected 0 to 1"),
        (
            BlendEntry(A, 1.0, schedule=((0.5, 1.0), (0.4, 1.0))),
            "schedule[1].progress",
            "is 0.4, expected at least 0.5",
        ),
        (BlendEntry(A, 1.0, schedule=((0.5, 99.0),)), "schedule[0].factor", "expected -16.0 to 16.0"),
        (BlendEntry(A, 1.0, schedule=((0.5, 1.0),) * 33), "schedule", "is 33, expected 0 to 32"),
    ],
)
def test_bad_parts_and_schedules_are_named(server: Any, entry: BlendEntry, field: str, said: str) -> None:
    for blend in ("blend", "negative_blend"):
        with pytest.raises(InvalidRequest) as caught:
            server.admission.admit(replace(ASKED, **{blend: (entry,)}))
        (violation,) = caught.value.violations
        assert violation.field == f"{blend}.entries[0].{field}" and said in violation.description


def test_blends_that_do_not_fit_beside_one_another_are_refused(server_with_a_small_pool: Any) -> None:
    """Neither is too large alone; taken in, they would wait for ever, and in the end everybody behind them."""
    server = server_with_a_small_pool
    one, other = (BlendEntry("attention", 1.0),), (BlendEntry("everything", 1.0),)
    asked = GenerationRequest("a dog", seed=1, steps=2, blend=one, negative_blend=one)
    assert server.draw([asked]) and server.draw([replace(asked, blend=other, negative_blend=None)])
    with pytest.raises(Incompatible, match=r"blend and negative_blend have total rank 20 in \S+, at most 19 fits"):
        server.admission.admit(replace(asked, negative_blend=other))
    assert server.admission.admit(replace(asked, negative_blend=other, guidance_scale=1.0)).negative_blend is None
