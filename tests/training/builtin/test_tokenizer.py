"""The built-in tokenizer is CLIP's own byte-pair encoding, cut short."""

import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer, CLIPTokenizerFast

from loramux_train.builtin.tokenizer import MERGES, byte_symbols, clip_merges, vocabulary, write_tokenizer

SHIPPED = Path(__file__).parents[3] / "server/loramux_server/builtin/base/tokenizer"


@pytest.mark.parametrize("kind", [CLIPTokenizer, CLIPTokenizerFast])
def test_shipped_tokenizer_loads_and_frames_captions(kind: type) -> None:
    tokenizer = kind.from_pretrained(SHIPPED)
    ids = tokenizer("A red apple").input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.convert_ids_to_tokens(ids)[1:-1] == ["a</w>", "red</w>", "apple</w>"]
    assert tokenizer.model_max_length == 77
    assert len(tokenizer("a red apple", padding="max_length").input_ids) == 77


def test_vocabulary_is_a_prefix_of_clips() -> None:
    """Ids of stock CLIP for words whose merges all lie in the prefix: only the two specials move."""
    words = json.loads((SHIPPED / "vocab.json").read_text())
    stock = {"a</w>": 320, "red</w>": 736, "on</w>": 525, "the</w>": 518, "dog</w>": 1929, "blue</w>": 1746}
    assert {word: words[word] for word in stock} == stock
    assert len(words) == 512 + MERGES + 2
    assert words["<|startoftext|>"] == 512 + MERGES


def test_merges_build_only_on_what_came_before() -> None:
    lines = (SHIPPED / "merges.txt").read_text().splitlines()[1:]
    known = set(byte_symbols()) | {symbol + "</w>" for symbol in byte_symbols()}
    for line in lines:
        left, right = line.split()
        assert left in known and right in known
        known.add(left + right)
    assert len(lines) == MERGES


def test_recipe_writes_what_is_shipped(tmp_path: Path) -> None:
    """From the shipped merges, which the tests above hold against stock CLIP."""
    merges = (SHIPPED / "merges.txt").read_text().splitlines()[1:]
    assert write_tokenizer(tmp_path, merges) == len(vocabulary(merges))
    for file in SHIPPED.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_the_recipe_says_where_the_merges_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loramux_train.builtin.tokenizer.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="open-clip-torch"):
        clip_merges()
