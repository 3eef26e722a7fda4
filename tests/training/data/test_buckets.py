"""Sizes of pictures, held against every size there could be."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picture_folders import settings

from loramux_train.data.buckets import Buckets, crop, enlargement, make_buckets
from loramux_train.data_settings import DataSettings

SIDES = st.integers(1, 50_000)
STEPS = st.sampled_from([8, 16, 64])


def _buckets(edge_in_steps: int, step: int, upscale: bool = True) -> tuple[Buckets, DataSettings]:
    chosen = settings(Path("x"), resolution=edge_in_steps * step, bucket_step=step, upscale=upscale)
    return make_buckets(chosen), chosen


def _shape_error(size: tuple[int, int], picture: tuple[int, int]) -> float:
    return abs(math.log(size[0] / size[1]) - math.log(picture[0] / picture[1]))


@given(st.integers(1, 16), STEPS, SIDES, SIDES)
def test_the_shape_is_the_nearest_there_is_within_the_area(edge: int, step: int, width: int, height: int) -> None:
    buckets, chosen = _buckets(edge, step)
    bucket = buckets.choose((width, height))
    low, high = chosen.edges
    assert all(side % step == 0 and low <= side <= high for side in bucket)
    assert bucket[0] * bucket[1] <= chosen.resolution**2
    # every size that cannot grow a step in both ways at once and stay within the area
    sides = range(low, high + 1, step)
    full = [
        (w, h)
        for w in sides
        for h in sides
        if w * h <= buckets.area and (h + step > high or w * (h + step) > buckets.area or (w + step) * h > buckets.area)
    ]
    assert bucket in full
    least = min(_shape_error(size, (width, height)) for size in full)
    assert _shape_error(bucket, (width, height)) == pytest.approx(least, abs=1e-12)


@given(st.integers(1, 8), STEPS, SIDES, SIDES)
def test_without_enlarging_no_picture_is_enlarged(edge: int, step: int, width: int, height: int) -> None:
    buckets, chosen = _buckets(edge, step, upscale=False)
    if min(width, height) < step:
        return
    bucket = buckets.choose((width, height))
    assert all(side % step == 0 and side > 0 for side in bucket)
    assert bucket[0] * bucket[1] <= chosen.resolution**2
    assert enlargement((width, height), bucket) <= 1


def test_a_picture_smaller_than_a_step_says_so() -> None:
    buckets, _ = _buckets(8, 64, upscale=False)
    with pytest.raises(ValueError, match="32x500 px, expected at least 64 px on each side"):
        buckets.choose((32, 500))


@given(st.integers(1, 16), STEPS, SIDES, SIDES, st.one_of(st.none(), st.integers(0, 99)))
def test_the_crop_lies_in_the_picture_and_keeps_its_shape(
    edge: int, step: int, width: int, height: int, seed: int | None
) -> None:
    bucket = _buckets(edge, step)[0].choose((width, height))
    random = None if seed is None else np.random.default_rng(seed)
    cut = crop((width, height), bucket, random)
    assert 0 <= cut.left <= cut.covering[0] - bucket[0]
    assert 0 <= cut.top <= cut.covering[1] - bucket[1]
    assert bucket[0] == cut.covering[0] or bucket[1] == cut.covering[1]  # nothing is cut on one axis at least
    left, top, right, bottom = cut.box((width, height))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_squares_alone_if_buckets_are_off() -> None:
    buckets = make_buckets(settings(Path("x"), resolution=512, buckets=False, upscale=False))
    assert buckets.choose((300, 4000)) == (512, 512)


def test_sizes_at_512_are_those_of_other_trainers() -> None:
    sizes = make_buckets(settings(Path("x"), resolution=512)).sizes
    assert {(512, 512), (448, 576), (384, 640), (320, 768), (256, 1024), (1024, 256)} <= set(sizes)
