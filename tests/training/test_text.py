"""Text conditions are those of diffusers' pipelines; captions are encoded once, alone, and kept on disk when asked."""

from pathlib import Path
from typing import Any

import pytest
import tiny_training as tiny
import torch
from diffusers import StableDiffusionXLPipeline

from loramux_train.batch import Sizes
from loramux_train.text import Text

WORDS = ["a red apple", "", "two cats"]


def test_sdxl_is_told_what_its_pipeline_tells() -> None:
    base = tiny.base(two=True)
    parts: dict[str, Any] = {
        "vae": None, "unet": base.unet, "scheduler": None,
        "text_encoder": base.text_encoders[0], "text_encoder_2": base.text_encoders[1],
        "tokenizer": base.tokenizers[0], "tokenizer_2": base.tokenizers[1],
    }  # fmt: skip
    pipe: Any = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    told = Text(base).conditions(WORDS, [Sizes(height=30, width=20, top=3, left=1)] * 3, (8, 4))
    for row, word in enumerate(WORDS):
        context, _, pooled, _ = pipe.encode_prompt(word, device="cpu", do_classifier_free_guidance=False)
        assert torch.allclose(told["encoder_hidden_states"][row], context[0], atol=1e-6)
        assert torch.allclose(told["added_cond_kwargs"]["text_embeds"][row], pooled[0], atol=1e-6)
    assert told["added_cond_kwargs"]["time_ids"].tolist() == [[30, 20, 3, 1, 16, 8]] * 3


def test_embeddings_are_the_same_whatever_the_batch_and_once_only(monkeypatch: pytest.MonkeyPatch) -> None:
    text = Text(tiny.base())
    alone = [text.embed([word]).context for word in WORDS]
    monkeypatch.setattr(text, "_encode", None)
    assert torch.equal(text.embed(WORDS).context, torch.cat(alone))


def test_embeddings_on_disk_are_read_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, other = Text(tiny.base()), Text(tiny.base()), Text(tiny.base(seed=1))
    for text in (first, second, other):
        text.keep(tmp_path)
    expected = first.embed(WORDS).context
    assert not torch.equal(other.embed(WORDS).context, expected), "an encoder's own embeddings"
    monkeypatch.setattr(second, "_encode", None)
    assert torch.equal(second.embed(WORDS).context, expected)


def test_encoders_that_train_are_asked_every_time() -> None:
    text = Text(tiny.base())
    before = text.embed(WORDS).context
    text.train(True)
    with torch.no_grad():
        text._base.text_encoders[0].final_layer_norm.bias.add_(1)
    assert not torch.allclose(text.embed(WORDS).context, before)
    text.train(False)
    assert not torch.allclose(text.embed(WORDS).context, before), "what was known is forgotten"
