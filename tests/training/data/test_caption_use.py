"""Captions as they are used: trigger word, tags, dropout, tokens."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picture_folders import line, picture, settings, surveyed
from transformers import CLIPTokenizer

from loramux_train.data.captions import (
    caption_of_use,
    caption_to_measure,
    fewest_tokens,
    shuffled,
    split_tags,
    tag_counts,
    with_trigger,
)

HERE = Path("x")
TOKENIZER = Path(__file__).parents[3] / "server/loramux_server/builtin/base/tokenizer"
TAGS = st.lists(st.text("abc ", min_size=1).map(str.strip).filter(bool), max_size=6)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(TOKENIZER)


@pytest.mark.parametrize(
    ("caption", "becomes"),
    [
        ("a cat", "sks, a cat"),
        ("a photo of [trigger] cat", "a photo of sks cat"),
        ("an SKS cat", "an SKS cat"),
        ("sksual", "sks, sksual"),
        ("", "sks"),
    ],
)
def test_the_trigger_word_is_in_every_caption(caption: str, becomes: str) -> None:
    assert with_trigger(caption, settings(HERE, trigger="sks")) == becomes


def test_a_placeholder_that_nothing_fills_refuses_the_run(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="a [trigger] cat")
    assert "no trigger is set" in line(surveyed(tmp_path), "no_trigger")
    assert not surveyed(tmp_path, trigger="sks").errors


@given(TAGS, st.integers(0, 7), st.integers(0, 99))
def test_shuffling_keeps_every_tag_and_the_first_in_place(tags: list[str], keep: int, seed: int) -> None:
    caption = ", ".join(tags)
    mixed = split_tags(shuffled(caption, settings(HERE, keep_tags=keep), np.random.default_rng(seed)), ",")
    assert sorted(mixed) == sorted(tags)
    assert mixed[:keep] == tags[:keep]


def test_shuffling_acts_and_a_separator_is_kept() -> None:
    chosen = settings(HERE, separator="|", shuffle=True)
    mixed = {shuffled("a|b|c|d", chosen, np.random.default_rng(seed)) for seed in range(20)}
    assert len(mixed) > 5
    assert all(sorted(caption.split("| ")) == list("abcd") for caption in mixed)


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.3, 240, 360), (1.0, 1000, 1000)])
def test_dropout_drops_its_share(share: float, low: int, high: int) -> None:
    chosen = settings(HERE, caption_dropout=share)
    uses = [caption_of_use(("a cat",), False, chosen, np.random.default_rng(seed)) for seed in range(1000)]
    assert set(uses) <= {"", "a cat"}
    assert low <= uses.count("") <= high


def test_class_pictures_get_no_trigger_word() -> None:
    chosen = settings(HERE, trigger="sks")
    assert caption_of_use(("a cat",), True, chosen, np.random.default_rng(0)) == "a cat"
    assert caption_of_use(("a cat",), False, chosen, np.random.default_rng(0)) == "sks, a cat"


def test_measuring_takes_the_caption_as_it_is() -> None:
    chosen = settings(HERE, shuffle=True, caption_dropout=1.0, trigger="sks")
    assert caption_to_measure(("b, a", "other"), chosen) == "sks, b, a"


def test_tags_are_counted_once_a_caption() -> None:
    assert tag_counts(["a, b, a", "b", ""], ",") == {"b": 2, "a": 1}


def test_a_caption_of_ten_thousand_characters_tells_how_much_is_cut(tmp_path: Path, tokenizer: CLIPTokenizer) -> None:
    caption = ("a small cat " * 1000)[:10_000]
    picture(tmp_path / "a.png", caption=caption)
    found = surveyed(tmp_path)
    found.require()
    words = len(caption.split())
    assert f"at least {words} tokens" in line(found, "long_caption")
    assert line(found, "long_caption").endswith(f"the last at least {words - 75} are cut")


@given(st.text(max_size=60))
def test_the_fewest_tokens_are_never_more_than_clips(tokenizer: CLIPTokenizer, caption: str) -> None:
    counted = len(tokenizer(caption, add_special_tokens=False)["input_ids"])
    assert fewest_tokens(caption) <= max(counted, 0)
