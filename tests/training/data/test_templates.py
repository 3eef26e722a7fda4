"""Pictures without captions learn from sentences about the trigger, where that is asked for."""

from pathlib import Path

import pytest
from picture_folders import batches, codes, line, picture, settings, surveyed
from pydantic import ValidationError

from loramux_train.data.survey import survey
from loramux_train.data.templates import TEMPLATES
from loramux_train.data_settings import DataSettings


@pytest.mark.parametrize("kind", TEMPLATES)
def test_every_sentence_is_about_the_trigger_once(kind: str) -> None:
    sentences = TEMPLATES[kind]
    assert len(set(sentences)) == len(sentences) > 15
    assert all(sentence.count("[trigger]") == 1 for sentence in sentences)


def test_pictures_without_captions_get_sentences_and_others_keep_their_own(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png", seed=number)
    picture(tmp_path / "own.png", caption="a cat", seed=9)
    assert "no_caption" in codes(surveyed(tmp_path, trigger="<zib>"), "error")
    found = surveyed(tmp_path, trigger="<zib>", templates="object")
    assert not found.errors
    assert line(found, "templates") == f"3 pictures in {tmp_path} have no caption and get sentences about '<zib>'"
    stream = batches(found)
    used = {caption for position in range(40) for caption in stream.batch(position).captions}
    possible = {sentence.replace("[trigger]", "<zib>") for sentence in TEMPLATES["object"]}
    assert used <= possible | {"<zib>, a cat"} and len(used) > 15 and "<zib>, a cat" in used


def test_a_folders_own_caption_is_before_sentences_and_those_before_a_folders_name(tmp_path: Path) -> None:
    picture(tmp_path / "3_cat/a.png")
    folder = {"path": str(tmp_path), "caption": "a dog"}
    own = settings(tmp_path, trigger="x", templates="style").model_dump() | {"folders": [folder]}
    assert {p.source.captions for p in surveyed(tmp_path, trigger="x", templates="style").pictures} == {
        TEMPLATES["style"]
    }
    assert {p.source.captions for p in survey(DataSettings(**own)).pictures} == {("a dog",)}


def test_sentences_need_a_trigger(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="templates is style, whose sentences are about the trigger"):
        settings(tmp_path, templates="style")
