"""Prompts as people write them: weights, chunks, skipped layers; alone and beside prompts of other lengths."""

import itertools
import operator
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.engine import prompt_syntax
from loramux_server.engine.blends import NOTHING, PlacedBlend
from loramux_server.engine.conditioning import side_by_side
from loramux_server.engine.prompt_syntax import Piece, parse
from loramux_server.engine.text import BlendedText
from loramux_server.engine.triggers import Trigger
from loramux_server.errors import InvalidRequest
from loramux_server.requests import BlendEntry, GenerationRequest, LongPrompt, PromptSyntax, TextMode

LONG = ", ".join(f"a {color} {thing}" for color in ("red", "blue", "green") for thing in ("apple", "dog", "house") * 4)
PLAIN_MODE = TextMode(PromptSyntax.PLAIN)


@pytest.mark.parametrize(
    "prompt,pieces",
    [
        ("a red apple", [[("a red apple", 1)]]),
        ("a (red) apple", [[("a ", 1), ("red", 1.1), (" apple", 1)]]),
        ("((red)) [big]", [[("red", 1.21), (" ", 1), ("big", 1 / 1.1)]]),
        ("(a (red:1.5) one:0.8)", [[("a ", 0.8), ("red", 1.2), (" one", 0.8)]]),
        ("one BREAK (two", [[("one ", 1)], [(" ", 1), ("two", 1.1)]]),
        (r"a \(b\) \[c\] \\", [[(r"a (b) [c] " + "\\", 1)]]),
        ("a) b] c:1.3)", [[("a) b] c:1.3)", 1)]]),
        ("(a:b)", [[("a:b", 1.1)]]),
        ("(a: 1.2 )", [[("a", 1.2)]]),
        ("(a:-1)(b:.5)", [[("a", -1), ("b", 0.5)]]),
        ("BREAKFAST", [[("BREAKFAST", 1)]]),
        ("", [[]]),
    ],
)
def test_brackets(prompt: str, pieces: list[list[tuple[str, float]]]) -> None:
    got = parse(prompt)
    assert [[piece.text for piece in section] for section in got] == [[t for t, _ in section] for section in pieces]
    weights = [piece.weight for section in got for piece in section]
    assert weights == pytest.approx([w for section in pieces for _, w in section])


@given(st.text(alphabet="ab ,:1.()[]\\", max_size=60))
def test_any_text_can_be_read_and_nothing_else_is_lost(prompt: str) -> None:
    kept = "".join(piece.text for section in parse(prompt) for piece in section)
    assert [c for c in kept if c in "ab,"] == [c for c in prompt if c in "ab,"]


@given(st.text(alphabet="ab,. ", max_size=40))
def test_text_without_brackets_stays_one_piece(prompt: str) -> None:
    assert parse(prompt) == (((Piece(prompt, 1.0),) if prompt else ()),)


def encode(server: Any, texts: Sequence[str], mode: TextMode) -> torch.Tensor:
    return server.app.engine.conditioner.encode([(text, PlacedBlend(())) for text in texts], mode)[0]


def embeddings(server: Any, text: str, mode: TextMode = TextMode()) -> torch.Tensor:  # noqa: B008
    with torch.inference_mode():
        return encode(server, [text], mode)


@pytest.mark.parametrize("prompt", ["(a" * 5000, "(a" * 3333 + ")" * 3333, "[a" * 3333 + "]" * 3333])
def test_deep_brackets_cost_no_more_than_their_text(prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece for each letter, however many brackets it stands in."""
    made: list[Piece] = []

    def piece(text: str, weight: float) -> Piece:
        made.append(Piece(text, weight))
        return made[-1]

    monkeypatch.setattr(prompt_syntax, "Piece", piece)
    (pieces,) = parse(prompt)
    factor = 1.1 if prompt[0] == "(" else 1 / 1.1
    weights = list(itertools.accumulate(itertools.repeat(factor, len(pieces)), operator.mul))
    assert [each.weight for each in pieces] == weights
    assert len(made) == len(pieces) == prompt.count("a")


def test_a_plain_prompt_is_the_tokenizers(server: Any) -> None:
    (encoder,) = server.app.engine.base.text_encoders
    for text in ("a red apple", "", "a (red) apple", LONG):
        tokens = encoder.tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            want = encoder.model(tokens.input_ids).last_hidden_state
        assert torch.equal(embeddings(server, text, replace(PLAIN_MODE, long_prompt=LongPrompt.CUT)), want)


def test_weights_move_their_tokens_along_the_line_from_no_text(server: Any) -> None:
    plain, weighted = embeddings(server, "a red apple"), embeddings(server, "a (red:1.5) apple (:0.5)")
    nothing = embeddings(server, "")
    others = [i for i in range(77) if i != 2]  # token 0 is the start, 1 "a", 2 "red"
    assert torch.equal(weighted[:, others], plain[:, others])
    assert torch.allclose(weighted[:, 2] - nothing[:, 2], 1.5 * (plain[:, 2] - nothing[:, 2]), atol=1e-5)
    assert not torch.allclose(weighted[:, 2], plain[:, 2], atol=1e-2)
    assert torch.equal(embeddings(server, "a (red:1.0) apple"), plain)
    assert torch.allclose(embeddings(server, "a (red:0) apple")[:, 2], nothing[:, 2], atol=1e-6)


def test_long_prompts_are_chunks_one_after_another(server: Any) -> None:
    whole = embeddings(server, LONG, PLAIN_MODE)
    assert whole.shape[1] % 77 == 0 and whole.shape[1] >= 2 * 77
    assert torch.equal(whole[:, :77], embeddings(server, LONG, replace(PLAIN_MODE, long_prompt=LongPrompt.CUT)))
    broken = embeddings(server, "a red apple BREAK a dog")
    assert torch.equal(broken[:, :77], embeddings(server, "a red apple "))
    assert torch.equal(broken[:, 77:], embeddings(server, " a dog"))


def test_the_shorter_of_two_prompts_is_filled_up(server: Any) -> None:
    with torch.inference_mode():
        both = encode(server, ["a dog", LONG], PLAIN_MODE)
    assert torch.equal(both[:1, :77], embeddings(server, "a dog"))
    assert torch.equal(both[:1, 77:154], embeddings(server, "")) and torch.equal(both[1:], embeddings(server, LONG))


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_skipped_layers_equal_the_peers(server: Any, tiny_base: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None, dtype=torch.float32)
    final = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm
    tokens = pipe.tokenizer("a dog", padding="max_length", return_tensors="pt").input_ids
    with torch.inference_mode():
        hidden = pipe.text_encoder(tokens, output_hidden_states=True).hidden_states
        for skipped in (0, 1):
            want = final(hidden[-(skipped + 1)])
            assert torch.allclose(embeddings(server, "a dog", TextMode(clip_skip=skipped)), want, atol=1e-6)
    one, other = (
        server.draw([GenerationRequest("a dog", seed=1, steps=3, text_mode=TextMode(clip_skip=n))])[0] for n in (0, 1)
    )
    assert not np.array_equal(one, other)


def test_every_part_of_the_cache_key_matters(server: Any) -> None:
    (prompts,) = server.app.engine.conditioner.encoders
    texts = "a (red) dog", "a (red) cat"
    modes = TextMode(), PLAIN_MODE, TextMode(clip_skip=1), TextMode(long_prompt=LongPrompt.CUT)
    with torch.inference_mode():
        for blend_key in ("one", "other"):
            for text in texts:
                for mode in modes:
                    prompts.encode([BlendedText(text, NOTHING, blend_key)], mode, 1)
    assert len(prompts._cache) == 16


def test_a_text_is_read_once(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is checked and when it is encoded."""
    (prompts,) = server.app.engine.conditioner.encoders
    read: list[str] = []
    tokens = prompts._tokens
    monkeypatch.setattr(prompts, "_tokens", lambda text: (read.append(text), tokens(text))[1])
    text = "a text that no other test has"
    assert not prompts.violations({"prompt": (text, [])}, PLAIN_MODE) and not prompts.found(text, PLAIN_MODE, [])
    with torch.inference_mode():
        encode(server, [text], PLAIN_MODE)
    assert read == [text]


def test_how_a_text_was_read_for_one_is_not_how_it_is_read_for_another(server: Any) -> None:
    """With other embeddings, of other lengths or in another order, in another syntax, or cut."""
    (prompts,) = server.app.engine.conditioner.encoders
    text, cat, dog, long_dog = "a cat BREAK a dog", Trigger("cat", 1), Trigger("dog", 1), Trigger("dog", 80)
    weighted, cut = TextMode(), TextMode(long_prompt=LongPrompt.CUT)
    asked: list[tuple[TextMode, list[Trigger], int, set[int]]] = [
        (weighted, [], 2, set()),
        (weighted, [dog], 2, {0}),
        (weighted, [long_dog], 3, {0}),
        (weighted, [dog, cat], 2, {0, 1}),
        (weighted, [Trigger("bird", 1), dog], 2, {1}),
        (weighted, [cat], 2, {0}),
        (PLAIN_MODE, [long_dog], 2, {0}),
        (PLAIN_MODE, [dog], 1, {0}),
        (cut, [cat, dog], 1, {0}),
        (cut, [dog, cat], 1, {1}),
        (weighted, [cat, dog], 2, {0, 1}),
    ]
    for mode, triggers, count, found in [*asked, *reversed(asked)]:
        assert prompts.count(text, mode, triggers) == count, (mode, triggers)
        assert prompts.found(text, mode, triggers) == found, (mode, triggers)


def test_pictures_do_not_depend_on_the_length_of_other_prompts(server: Any) -> None:
    """Rows of one, two and four chunks in one forward; each picture as alone."""
    texts = ["a dog", LONG, "a red apple BREAK a dog BREAK a house BREAK (a cat:1.4)", "a (red:1.3) apple"]
    dice = random.Random(3)
    asked = [
        GenerationRequest(
            text, negative_prompt=dice.choice(["", LONG]), seed=seed, steps=3, guidance_scale=dice.choice([1.0, 4.0]),
            blend=(BlendEntry(dice.choice(["everything", "attention"]), 0.8),), num_images=1,
        )
        for seed, text in enumerate(texts * 2)
    ]  # fmt: skip
    widths: list[int] = []
    forward = server.app.engine._forward

    def watched(rows: Any) -> torch.Tensor:
        widths.append(len({row.given.text.shape[1] for row in rows}))
        return forward(rows)

    server.app.engine._forward = watched
    server.draw([replace(request, steps=1) for request in asked])  # brings the adapters in
    widths.clear()
    company = server.draw(asked)
    assert max(widths) >= 3, "no forward mixed lengths"
    alone = [server.draw([request])[0] for request in asked]
    assert max(np.abs(a.astype(int) - c.astype(int)).max() for a, c in zip(alone, company, strict=True)) <= 1


def test_equally_long_prompts_need_no_mask() -> None:
    joined, mask = side_by_side([torch.randn(2, 77, 8), torch.randn(1, 77, 8)])
    assert joined.shape == (3, 77, 8) and mask is None
    joined, mask = side_by_side([torch.randn(2, 77, 8), torch.randn(1, 154, 8)])
    assert joined.shape == (3, 154, 8) and mask.sum(1).tolist() == [77, 77, 154]
    assert not joined[:2, 77:].any()


@pytest.mark.parametrize(
    "asked,field,said",
    [
        ({"text_mode": TextMode(clip_skip=2)}, "clip_skip", "expected 0 to 1 on this base"),
        ({"text_mode": TextMode(clip_skip=-1)}, "clip_skip", "expected 0 to 1"),
        ({"prompt": LONG * 8}, "prompt", "chunks of 75 tokens, expected at most 8"),
        ({"negative_prompt": "BREAK " * 9}, "negative_prompt", "takes 10 chunks"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(server: Any, asked: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        server.admission.admit(GenerationRequest(**{"prompt": "a dog", **asked}))
    (violation,) = caught.value.violations
    assert violation.field == field and said in violation.description


def test_prompts_that_would_be_too_long_may_be_cut(server: Any) -> None:
    cut = TextMode(long_prompt=LongPrompt.CUT)
    (one,) = server.draw([GenerationRequest(LONG * 8, seed=1, steps=2, text_mode=cut)])
    (other,) = server.draw([GenerationRequest(LONG * 4, seed=1, steps=2, text_mode=cut)])
    assert np.array_equal(one, other)
