"""New words: where they stand, what they start from, what is remembered of captions, and which settings can be."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_training as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.engine.triggers import split
from loramux_train import config
from loramux_train.errors import BadSetting
from loramux_train.text import Text
from loramux_train.token_settings import TokenSettings
from loramux_train.tokens.vectors import Tokens, share
from loramux_train.tokens.words import Words

WORDS = ("<zib>", "zib", "my style", "zib2", "Ärt")
TEXTS = st.lists(
    st.sampled_from([*WORDS, "ZIB", "<Zib", ">", " ", "_", "a", "MY\nstyle", "A\u0308rt", "é"]), max_size=8
)


@given(TEXTS.map("".join), st.lists(st.sampled_from(WORDS), unique=True))
def test_words_stand_where_the_server_finds_triggers(text: str, words: list[str]) -> None:
    assert Words(words).split(text) == split(text, words)
    assert Words(words).within(text) == any(isinstance(piece, int) for piece in split(text, words))


@given(st.integers(1, 75), st.integers(1, 75))
def test_start_words_are_shared_out_in_order_and_none_is_left_out(vectors: int, words: int) -> None:
    shares = [share(number, vectors, words) for number in range(vectors)]
    assert all(0 <= first < end <= words for first, end in shares)
    assert {word for first, end in shares for word in range(first, end)} == set(range(words))
    assert shares == sorted(shares)
    if words >= vectors:
        assert sum(end - first for first, end in shares) == words


def tokens(new: Any, two: bool = False, seed: int = 0) -> tuple[Any, Tokens]:
    base = tiny.base(two=two)
    return base, Tokens(base, TokenSettings.model_validate({"new": new}), seed)


def test_a_start_is_the_words_own_vectors() -> None:
    base, made = tokens(({"word": "<zib>", "vectors": 4, "start": "red apple"},), two=True)
    for encoder, name in zip(base.text_encoders, ("tokens.text_encoder.0", "tokens.text_encoder_2.0"), strict=True):
        table = encoder.get_input_embeddings().weight
        red, apple = (
            table[base.tokenizers[0](word, add_special_tokens=False).input_ids[0]] for word in ("red", "apple")
        )
        assert torch.equal(made.parameters[name], torch.stack([red, red, apple, apple]))


def test_a_random_start_is_as_spread_as_the_table_and_the_seeds_own() -> None:
    base, made = tokens(({"word": "<zib>", "vectors": 75}, {"word": "<zob>", "vectors": 75}), two=True)
    same, other = (tokens(({"word": "<zib>", "vectors": 75},), two=True, seed=seed)[1] for seed in (0, 1))
    spread = base.text_encoders[0].get_input_embeddings().weight.std()
    first, second = (made.parameters[f"tokens.text_encoder.{number}"] for number in (0, 1))
    assert float(first.detach().std()) == pytest.approx(float(spread), rel=0.05)
    assert torch.equal(first, same.parameters["tokens.text_encoder.0"])
    assert not torch.equal(first, second) and not torch.equal(first, other.parameters["tokens.text_encoder.0"])
    assert not torch.equal(first[0], made.parameters["tokens.text_encoder_2.0"][0, :32])


def test_captions_without_new_words_are_read_as_ever_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, made = tokens(("<zib>",))
    text = Text(base, made)
    text.keep(tmp_path)
    text.train(False, settled=False)
    asked: list[str] = []
    encode = text._encode
    monkeypatch.setattr(text, "_encode", lambda captions: (asked.extend(captions), encode(captions))[1])
    captions = ["two cats", "a <zib>", "the moon"]
    first = text.embed(captions).context
    assert torch.equal(first[[0, 2]], Text(base).embed(["two cats", "the moon"]).context)
    with torch.no_grad():
        made.parameters["tokens.text_encoder.0"].add_(1)
    second = text.embed(captions).context
    assert sorted(asked) == ["a <zib>", "a <zib>", "the moon", "two cats"]
    assert torch.equal(first[[0, 2]], second[[0, 2]]) and not torch.allclose(first[1], second[1])
    assert second.requires_grad and not Text(base, made).embed(["two cats"]).context.requires_grad
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2, "vectors of today are nothing to keep on disk"
    text.train(False, settled=True)
    text.embed(captions)
    text.embed(captions)
    assert asked.count("a <zib>") == 3, "what stays as it is is remembered"
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2, "but not on disk, for runs with other vectors"
    text.train(False)
    asked.clear()
    text.embed(captions)
    text.embed(captions)
    assert asked.count("a <zib>") == 2, "what may change is not remembered"


def test_encoders_that_share_a_table_read_their_own_vectors() -> None:
    made_base = tiny.base()
    other = tiny.base(seed=1).text_encoders[0]
    shared: Any = made_base.text_encoders[0]
    other.set_input_embeddings(shared.get_input_embeddings())
    base = replace(made_base, text_encoders=(shared, other), tokenizers=made_base.tokenizers * 2)
    made = Tokens(base, TokenSettings.model_validate({"new": ["<zib>"]}), 0)
    placed = made.read(base.tokenizers[0], ["a <zib>"])

    def states() -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for number, encoder in enumerate((shared, other)):
            with made.put_in(number, encoder, placed):
                found.append(encoder(placed.ids).last_hidden_state)
        return found

    before = states()
    with torch.no_grad():
        made.parameters["tokens.text_encoder_2.0"].add_(1)
    after = states()
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])
    assert not shared.get_input_embeddings()._forward_hooks


def test_gradients_reach_vectors_alone() -> None:
    base, made = tokens(("<zib>", {"word": "my style", "vectors": 2}))
    text = Text(base, made)
    text.train(False, settled=False)
    text.embed(["a <zib>", "two cats"]).context.square().sum().backward()
    used, unused = (made.parameters[f"tokens.text_encoder.{number}"].grad for number in (0, 1))
    assert used is not None and used.abs().max() > 0
    assert unused is not None and unused.abs().max() == 0
    assert all(parameter.grad is None for parameter in base.text_encoders[0].parameters())
    made.learning = False
    assert not text.embed(["a <zib>"]).context.requires_grad


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"new": [" zib"]}, "tokens.new.0.word is ' zib': expected a word without white space around it"),
        ({"new": ["<->"]}, "tokens.new.0.word is '<->': expected at least one letter or digit"),
        ({"new": ["<zib>", "zib"]}, "twice, or another word whose file would be called the same"),
        ({"new": [{"word": "zib", "vectors": 76}]}, "tokens.new.0.vectors is 76"),
        ({"new": [{"word": "zib", "vector": 2}]}, "tokens.new.0.vector is no setting"),
        ({"alone": True}, "alone and bundle need new words"),
        ({"new": ["zib"], "alone": True, "stop": 0.5}, "stop is 0.5 with alone"),
        ({"new": ["zib"], "alone": True, "bundle": True}, "bundle puts vectors into an adapter's file"),
        ({"new": ["zib"], "norm": "keep"}, "tokens.norm is 'keep'"),
    ],
)
def test_settings_that_cannot_be_are_named(given_: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSetting) as refused:
        config.parse({"data": {"folders": ["x"]}, "tokens": given_})
    assert said in str(refused.value)


def test_words_are_settings_in_every_way_they_can_be_written() -> None:
    resolution = {"data": {"folders": ["x"], "resolution": 64}}
    by_flag = config.read(None, ["--tokens.new", "<zib>", "--data.folders", "x", "--data.resolution", "64"])
    by_list = config.resolved(config.parse(resolution | {"tokens": {"new": ["<zib>"]}}))
    by_table = config.resolved(config.parse(resolution | {"tokens": {"new": [{"word": "<zib>", "vectors": 1}]}}))
    assert by_flag == by_list == by_table
    assert by_flag.tokens.rate == 5e-3 and config.parse(resolution).tokens.rate is None


def test_settings_with_words_are_written_and_read_back(tmp_path: Path) -> None:
    given_ = {
        "new": [{"word": "<zib>", "vectors": 2, "start": 'a "red" apple'}, "my style"],
        "stop": 0.5,
        "bundle": True,
    }
    made = config.resolved(config.parse({"data": {"folders": ["x"], "resolution": 64}, "tokens": given_}))
    (tmp_path / "train.toml").write_text(config.to_toml(made))
    assert config.read(tmp_path / "train.toml") == made
