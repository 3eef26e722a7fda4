"""Batches are a pure function of their position, drop nothing, and weigh what they should."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as chances
from hypothesis import strategies as st
from picture_folders import SCALING, batches, codes, encode, line, picture, settings, surveyed, validation
from PIL import Image

from loramux_train.batch import Batch
from loramux_train.data.batches import FolderBatches, crop_of_use, is_mirrored
from loramux_train.data.buckets import crop
from loramux_train.data.finding import Source
from loramux_train.data.latent_cache import LatentCache
from loramux_train.data.notes import DataError
from loramux_train.data.order import Order
from loramux_train.data.picture import Picture
from loramux_train.data.pixels import trained
from loramux_train.data.prior import draw_missing
from loramux_train.data.validation import validation_contents
from loramux_train.data_settings import PriorSettings


def _picture(number: int, bucket: tuple[int, int], repeats: int, prior: bool) -> Picture:
    source = Source(Path(f"{'class' if prior else 'own'}-{number}.png"), (f"caption {number}",), repeats, prior)
    return Picture(source, f"{number:064x}", "", bucket, bucket, 1.0)


BUCKETS = st.sampled_from([(64, 64), (80, 48), (48, 80)])
OWN = st.lists(st.tuples(BUCKETS, st.integers(1, 4)), min_size=1, max_size=8)
CLASS = st.lists(BUCKETS, max_size=12)


def _pictures(own: list[Any], prior: list[Any]) -> list[Picture]:
    trained_on = [_picture(index, bucket, repeats, False) for index, (bucket, repeats) in enumerate(own)]
    return trained_on + [_picture(100 + index, bucket, 1, True) for index, bucket in enumerate(prior)]


@given(OWN, CLASS, st.integers(1, 5), st.integers(0, 3))
def test_an_epoch_uses_every_picture_as_often_as_it_repeats(own: Any, prior: Any, size: int, epoch: int) -> None:
    pictures = _pictures(own, prior)
    made = Order(pictures, settings(Path("x"), batch_size=size)).epoch(epoch)
    uses = Counter(use.picture for batch in made for use in batch if not use.picture.source.prior)
    assert uses == {p: p.source.repeats for p in pictures if not p.source.prior}
    repeats = [(use.picture, use.repeat) for batch in made for use in batch]
    assert len(set(repeats)) == len(repeats)
    assert all(len({use.picture.bucket for use in batch}) == 1 for batch in made)
    assert all(len(batch) <= size for batch in made)
    smaller = Counter(batch[0].picture.bucket for batch in made if len(batch) < size)
    assert all(count == 1 for count in smaller.values())


@given(OWN, CLASS, st.integers(1, 5), st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_the_order_is_a_pure_function_of_the_position(own: Any, prior: Any, size: int, positions: list[int]) -> None:
    chosen = settings(Path("x"), batch_size=size, seed=5)
    whole, used = Order(_pictures(own, prior), chosen), Order(_pictures(own, prior), chosen)
    unbroken = [whole.uses(position) for position in range(61)]
    assert [used.uses(position) for position in positions] == [unbroken[position] for position in positions]


@given(OWN, CLASS)
def test_epochs_follow_each_other_without_a_gap(own: Any, prior: Any) -> None:
    order = Order(_pictures(own, prior), settings(Path("x")))
    expected = [(epoch, index) for epoch in range(3) for index in range(order.steps(epoch))]
    assert [order.at(position) for position in range(len(expected))] == expected


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    pictures = _pictures([((64, 64), 1)] * 8, [])
    first = Order(pictures, settings(Path("x")))
    other = Order(pictures, settings(Path("x"), seed=1))
    assert first.epoch(0) != [[use for use in batch] for batch in other.epoch(0)]
    assert [[u.picture for u in b] for b in first.epoch(0)] != [[u.picture for u in b] for b in first.epoch(1)]


def test_a_bucket_smaller_than_the_batch_is_not_dropped_simpletuner_44(tmp_path: Path) -> None:
    picture(tmp_path / "wide.png", (160, 80), caption="wide")
    for name in "abcd":
        picture(tmp_path / f"{name}.png", caption=name)
    source = batches(surveyed(tmp_path, batch_size=4))
    seen = [source.batch(position).captions for position in range(source.order.steps(0))]
    assert sorted(seen, key=len)[0] == ("wide",)
    assert sorted(caption for batch in seen for caption in batch) == ["a", "b", "c", "d", "wide"]


@given(OWN, st.lists(BUCKETS, min_size=1, max_size=12))
def test_all_class_pictures_are_used_in_turn_sd_scripts_330(own: Any, prior: Any) -> None:
    pictures = _pictures(own, prior)
    order = Order(pictures, settings(Path("x")))
    count = sum(repeats for _, repeats in own)
    epochs = -(-len(prior) // count)
    uses = Counter(
        use.picture
        for epoch in range(epochs)
        for batch in order.epoch(epoch)
        for use in batch
        if use.picture.source.prior
    )
    assert sum(uses.values()) == epochs * count
    assert set(uses) == {p for p in pictures if p.source.prior}
    assert max(uses.values()) - min(uses.values()) <= 1


# what a batch holds


def _same(one: Batch, other: Batch) -> bool:
    tensors = torch.equal(one.latents, other.latents) and torch.equal(one.weights, other.weights)
    return tensors and (one.captions, one.sizes) == (other.captions, other.sizes)


EVERYTHING: dict[str, Any] = {
    "flip": True,
    "crop": "random",
    "shuffle": True,
    "caption_dropout": 0.3,
    "trigger": "sks",
    "batch_size": 2,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(5):
        picture(folder / f"{number}.png", (70 + 10 * number, 90), caption=f"a, b, c, d, {number}", seed=number)
    return folder


@chances(max_examples=8)
@given(st.permutations(range(9)))
def test_batches_are_a_pure_function_of_the_position(photos: Path, positions: list[int]) -> None:
    found = surveyed(photos, **EVERYTHING)
    whole, resumed = batches(found), batches(found)
    unbroken = [whole.batch(position) for position in range(9)]
    assert len({batch.captions for batch in unbroken}) > 4  # chance acts
    assert not _same(unbroken[0], unbroken[1])
    assert all(_same(resumed.batch(position), unbroken[position]) for position in positions)


def test_uses_of_a_picture_differ_between_epochs(photos: Path) -> None:
    source = batches(surveyed(photos, **{**EVERYTHING, "batch_size": 1}))
    steps = source.order.steps(0)
    uses = [source.batch(position) for position in range(6 * steps)]
    of_one = [batch for batch in uses if batch.captions[0].endswith("4") or "4" in batch.captions[0]]
    assert len({batch.captions for batch in of_one}) > 1
    assert len({(batch.sizes[0].left, batch.sizes[0].top) for batch in of_one}) > 1


def test_latents_are_samples_of_the_scaled_posterior(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="a cat")
    found = surveyed(tmp_path)
    source = batches(found)
    cut = crop((64, 64), (64, 64))
    mean, std = encode(trained(found.pictures[0], cut, False, found.settings).pixels()[None])
    drawn = torch.cat([source.batch(position).latents for position in range(300)]) / SCALING.factor + SCALING.shift
    noise = (drawn - mean) / std
    # means and deviations of 300 x 256 numbers: within five standard errors
    assert abs(noise.mean().item()) < 5 / (300 * 256) ** 0.5
    assert noise.std().item() == pytest.approx(1.0, abs=5 / (2 * 300 * 256) ** 0.5)


def test_a_mirrored_picture_is_the_mirror_image(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (100, 64), caption="a cat")
    found = surveyed(tmp_path, buckets=False)
    cut = crop((100, 64), (64, 64), np.random.default_rng(3))
    plain, mirrored = (trained(found.pictures[0], cut, flip, found.settings).pixels() for flip in (False, True))
    assert torch.equal(mirrored, plain.flip(-1))
    assert not torch.equal(mirrored, plain)


def test_sizes_tell_where_the_crop_begins_mirrored_too(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (200, 100), caption="a cat")
    found = surveyed(tmp_path, buckets=False, crop="random", flip=True)
    source = batches(found)
    seen: set[bool] = set()
    for position in range(12):
        batch = source.batch(position)
        (use,) = source.order.uses(position)
        (sizes,) = batch.sizes
        assert (sizes.height, sizes.width, sizes.top) == (100, 200, 0)
        cut, mirrored = crop_of_use(use, found.settings), is_mirrored(use, found.settings)
        whole = trained(found.pictures[0], cut, mirrored, found.settings).pixels()
        image = Image.open(found.pictures[0].source.path).resize(cut.covering, Image.Resampling.LANCZOS)
        turned = np.asarray(image)[:, ::-1] if mirrored else np.asarray(image)
        told = turned[sizes.top : sizes.top + 64, sizes.left : sizes.left + 64]
        inner = np.s_[8:-8, 8:-8]  # a crop of the resized and a resize of the crop differ near its edge
        assert np.abs((whole.numpy().transpose(1, 2, 0) + 1) * 127.5 - told)[inner].max() <= 2
        seen.add(mirrored)
    assert seen == {False, True}


def test_class_pictures_have_the_prior_weight_diffusers_13797(tmp_path: Path) -> None:
    picture(tmp_path / "own" / "a.png", caption="sks cat")
    for name in "abc":
        picture(tmp_path / "class" / f"{name}.png")
    prior = {"folder": str(tmp_path / "class"), "prompt": "cat", "weight": 0.25}
    source = batches(surveyed(tmp_path / "own", prior=prior, batch_size=2))
    for position in range(3):
        batch = source.batch(position)
        weight = {"sks cat": 1.0, "cat": 0.25}
        assert sorted(batch.captions) == ["cat", "sks cat"]
        assert batch.weights.tolist() == [weight[caption] for caption in batch.captions]


def test_masks_are_cut_and_mirrored_with_their_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (128, 64), caption="a cat")
    mask = Image.new("L", (128, 64), 0)
    mask.paste(255, (40, 0, 128, 64))  # the middle 64 begin at 32, so that one latent of eight is black
    mask.save(tmp_path / "a-masklabel.png")
    found = surveyed(tmp_path, masks="files", buckets=False, flip=True, unmasked_weight=0.25)
    source = batches(found)
    seen: set[tuple[float, ...]] = set()
    for position in range(12):
        masks = source.batch(position).masks
        assert masks is not None
        assert masks.shape == (1, 1, 8, 8)
        seen.add(tuple(round(number, 2) for number in masks[0, 0, 4].tolist()))
    plain = (0.25, *([1.0] * 7))
    blurred = {tuple(row) for row in seen}
    assert len(blurred) == 2
    rows = sorted(blurred)
    assert rows[0] == pytest.approx(plain, abs=0.06)  # Lanczos rings beside an edge
    assert rows[1] == pytest.approx(plain[::-1], abs=0.06)


def test_opacity_is_a_mask_if_asked_for(tmp_path: Path) -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 64, 32))
    image.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a cat")
    picture(tmp_path / "b.png", caption="whole")
    assert batches(surveyed(tmp_path)).batch(0).masks is None
    batch = batches(surveyed(tmp_path, masks="alpha", unmasked_weight=0.0)).batch(0)
    assert batch.masks is not None
    rows = dict(zip(batch.captions, batch.masks[:, 0, :, 0].tolist(), strict=True))
    assert rows == {"a cat": [0, 0, 0, 0, 1, 1, 1, 1], "whole": [1] * 8}


def test_no_batches_of_a_survey_with_errors(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    found = surveyed(tmp_path)
    with pytest.raises(DataError, match="no caption"):
        batches(found)
    with pytest.raises(DataError, match="no caption"):
        validation(found)


# validation


@given(
    st.sets(st.text("0123456789abcdef", min_size=8, max_size=8), min_size=2, max_size=40),
    st.integers(0, 9),
    st.sampled_from([0.01, 0.2, 0.5]),
)
def test_the_split_is_by_content_never_all_and_stable(contents: set[str], seed: int, share: float) -> None:
    chosen = settings(Path("x"), validation_share=share, seed=seed)
    out = validation_contents([*contents, *contents], chosen)
    assert len(out) == max(1, round(share * len(contents))) < len(contents)
    assert out == validation_contents(sorted(contents), chosen)
    added = validation_contents([*contents, "ffffffff0"], chosen)
    assert len(out - added) <= 1


def test_copies_and_mirrored_uses_are_on_one_side(tmp_path: Path) -> None:
    for number in range(10):
        for copy in "ab":
            picture(tmp_path / f"{number}{copy}.png", caption=f"{number}", seed=number)
    found = surveyed(tmp_path, validation_share=0.3, flip=True)
    trained_on = {p.content for p in found.pictures}
    kept_out = {p.content for p in found.kept_out}
    assert len(kept_out) == 3
    assert not trained_on & kept_out
    assert len(found.kept_out) == 6
    source, held = batches(found), validation(found)
    seen = {caption for position in range(2 * source.order.steps(0)) for caption in source.batch(position).captions}
    measured = {caption for position in range(len(held)) for caption in held.batch(position).captions}
    assert len(seen) == 7
    assert len(measured) == 3
    assert not seen & measured


def test_measuring_is_the_same_every_time(photos: Path) -> None:
    found = surveyed(photos, **EVERYTHING, validation_share=0.4)
    first, again = validation(found), validation(found)
    for position in reversed(range(len(first))):
        assert _same(first.batch(position), again.batch(position))
    assert sum(len(first.batch(position).captions) for position in range(len(first))) == 2
    with pytest.raises(IndexError):
        first.batch(len(first))


# class pictures


def _draw(prompts: Any, seeds: Any) -> list[Image.Image]:
    return [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)) for seed in seeds]


def test_missing_class_pictures_are_drawn_once(tmp_path: Path) -> None:
    picture(tmp_path / "own" / "a.png", caption="sks cat")
    picture(tmp_path / "class" / "there.png")
    prior = {"folder": str(tmp_path / "class"), "prompt": "a cat", "count": 6}
    chosen = settings(tmp_path / "own", prior=prior, seed=40)
    calls: list[tuple[list[str], list[int]]] = []

    def draw(prompts: Any, seeds: Any) -> list[Image.Image]:
        calls.append((list(prompts), list(seeds)))
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return _draw(prompts, seeds)

    with pytest.raises(RuntimeError):
        draw_missing(chosen, draw, at_once=3)
    assert len(draw_missing(chosen, draw, at_once=3)) == 2
    assert draw_missing(chosen, draw) == []
    assert calls[0] == (["a cat"] * 3, [40, 41, 42])
    assert calls[2] == (["a cat"] * 2, [43, 44])
    found = surveyed(tmp_path / "own", prior=prior)
    found.require()
    assert sum(p.source.prior for p in found.pictures) == 6
    assert {p.source.captions for p in found.pictures if p.source.prior} == {("a cat",)}


def test_class_pictures_that_will_be_drawn_are_no_error(tmp_path: Path) -> None:
    picture(tmp_path / "own" / "a.png", caption="sks cat")
    prior = {"folder": str(tmp_path / "class"), "prompt": "a cat", "count": 6}
    assert codes(surveyed(tmp_path / "own", prior=prior), "info") == {"prior_drawn"}
    assert "no_folder" in codes(surveyed(tmp_path / "own", prior={**prior, "count": 0}), "error")


def test_the_same_words_for_subject_and_class_are_told_sd_scripts_330(tmp_path: Path) -> None:
    picture(tmp_path / "img" / "10_cat" / "a.png")
    picture(tmp_path / "reg" / "1_cat" / "b.png")
    prior = {"folder": str(tmp_path / "reg"), "prompt": "cat"}
    assert "a word of its own" in line(surveyed(tmp_path / "img", prior=prior), "same_class_words")
    assert not codes(surveyed(tmp_path / "img", prior=prior, trigger="sks"), "warning")
    with_trigger = {**prior, "prompt": "an sks cat"}
    assert "the subject's alone" in line(
        surveyed(tmp_path / "img", prior=with_trigger, trigger="sks"), "same_class_words"
    )


def test_class_pictures_that_are_trained_on_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "img" / "a.png", caption="sks cat", seed=1)
    picture(tmp_path / "reg" / "b.png", seed=1)
    prior = {"folder": str(tmp_path / "reg"), "prompt": "cat"}
    assert "b.png" in line(surveyed(tmp_path / "img", prior=prior), "prior_is_trained_on")
    same = PriorSettings(folder=tmp_path / "img", prompt="cat")
    assert "keep the folders apart" in line(surveyed(tmp_path / "img", prior=same), "prior_is_trained_on")


def test_filling_encodes_every_picture_both_ways_once(tmp_path: Path) -> None:
    for name in "abc":
        picture(tmp_path / f"{name}.png", caption="x")
    found = surveyed(tmp_path, flip=True, cache=None)
    calls: list[int] = []

    def counted(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(len(pixels))
        return encode(pixels)

    source = FolderBatches(found, LatentCache(tmp_path / "cache", "vae", counted, found.settings), SCALING)
    assert list(source.fill()) == [1, 2, 3]
    assert calls == [1] * 6
    for position in range(6):
        source.batch(position)
    assert calls == [1] * 6
