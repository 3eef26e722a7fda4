"""`loramux train check`: the report, the sheet and the exit status."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_folders import picture, surveyed
from PIL import Image, ImageFont

from loramux_train.cli import train
from loramux_train.data.report import report, tag_frequency
from loramux_train.data.trained_sheet import LINES, TILE, trained_sheet, wrapped


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(4):
        picture(tmp_path / "photos" / "5_sks cat" / f"{number}.png", caption=f"a cat, tag {number}")
    picture(tmp_path / "photos" / "5_sks cat" / "wide.png", (160, 64))
    return tmp_path / "photos"


def _run(*words: str) -> Any:
    return train(["check", *words], exit_on_error=False, print_error=False, result_action="return_value")


def _run_json(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    status = _run(*words, "--data.resolution", "64", "--json")
    return status, json.loads(capsys.readouterr().out)


def test_a_good_folder_in_numbers(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, told = _run_json(capsys, str(photos), "--data.batch_size", "4", "--data.trigger", "sks")
    assert status == 0
    assert told["verdict"] == "ready"
    assert (told["pictures"], told["own_captions"], told["folder_captions"]) == (5, 4, 1)
    assert told["folders"] == [
        {"folder": str(photos / "5_sks cat"), "kind": "train", "pictures": 5, "repeats": 5, "uses": 25}
    ]
    assert [(b["width"], b["height"], b["pictures"], b["uses"], b["batches"]) for b in told["buckets"]] == [
        (64, 64, 4, 20, 5),
        (96, 40, 1, 5, 2),
    ]
    assert told["steps_per_epoch"] == 7
    assert told["tags"]["a cat"] == told["tags"]["sks"] == 4
    assert {note["code"] for note in told["notes"]} == {"no_caption"}


def test_a_bad_folder_exits_with_three(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "5_sks cat" / "bad.jpg").write_bytes(b"nothing")
    status, told = _run_json(capsys, str(photos))
    assert (status, told["verdict"]) == (3, "refused")
    assert [note["code"] for note in told["notes"] if note["weight"] == "error"] == ["broken"]
    assert _run_json(capsys, str(photos), "--data.skip_broken", "true")[0] == 0
    assert _run_json(capsys, str(photos / "nowhere"))[0] == 3


def test_misuse_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("photos", "--data.batch_size", "0") == 2
    assert capsys.readouterr().err == "loramux: data.batch_size is 0: Input should be greater than or equal to 1\n"
    assert _run() == 2


def test_the_table_says_the_same(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(str(photos), "--data.resolution", "64", "--data.batch_size", "4") == 0
    out = capsys.readouterr().out
    assert "warning: 1 of 5 pictures" in out
    assert "steps an epoch: 7, of up to 4 pictures" in out
    assert out.endswith("verdict: ready\n")


def test_tokens_are_counted_by_the_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "a.png", caption="supercalifragilistic " * 20)
    assert not surveyed(tmp_path).notes  # the fewest that there can be
    _, told = _run_json(capsys, str(tmp_path))
    (note,) = told["notes"]
    assert note["code"] == "long_caption"
    assert "at least" not in note["text"]


def test_small_pictures_and_copies_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "small.png", (20, 20), caption="x", seed=1)
    picture(tmp_path / "one.png", caption="x", seed=2)
    picture(tmp_path / "two.png", caption="x", seed=2)
    status, told = _run_json(capsys, str(tmp_path))
    notes = {note["code"]: [Path(file).name for file in note["files"]] for note in told["notes"]}
    assert status == 0
    assert notes == {"enlarged": ["small.png"], "copies": ["one.png", "two.png"]}


def test_the_sheet_shows_what_is_trained_on(photos: Path, tmp_path: Path) -> None:
    for flip in ((), ("--data.flip", "true")):
        assert _run(str(photos), "--data.resolution", "64", "--sheet", str(tmp_path / "sheet.png"), *flip) == 0
        sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
        first = Image.open(photos / "5_sks cat" / "0.png").resize((TILE, TILE), Image.Resampling.LANCZOS)
        plain = np.asarray(first).astype(int)
        tile = sheet[36 : 36 + TILE, 8 : 8 + TILE]
        assert np.abs(tile - plain).max() <= 1 or (flip and np.abs(tile - plain[:, ::-1]).max() <= 1)
        assert (sheet[36 + TILE :, 8 : 8 + TILE] < 128).any()  # words below it


def test_a_sheet_of_nothing_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(str(tmp_path / "none"), "--sheet", str(tmp_path / "sheet.png")) == 3
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(("name", "said"), [("s.foo", ".foo is no kind"), ("s", "no ending"), ("x/s.png", "no folder")])
def test_a_sheet_that_cannot_be_written_is_told_before_pictures_are_read(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    assert _run(str(photos), "--sheet", str(tmp_path / name)) == 2
    told = capsys.readouterr()
    assert said in told.err and told.out == ""


def test_the_sheet_tells_dropped_captions_from_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png", caption="a cat")
    picture(tmp_path / "b.png", caption=" ")
    drawn: list[str] = []
    monkeypatch.setattr("loramux_train.data.trained_sheet.wrapped", lambda text, _: drawn.append(text) or [text])
    trained_sheet(surveyed(tmp_path, caption_dropout=1.0))
    assert "(caption dropped in this use)" in drawn and "(no caption)" in drawn
    drawn.clear()
    trained_sheet(surveyed(tmp_path, caption_dropout=0.0))
    assert "a cat" in drawn and "(no caption)" in drawn


def test_masked_parts_are_pale(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "black").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x")
    mask = Image.new("L", (64, 64), 255)
    mask.paste(0, (0, 0, 64, 32))
    mask.save(tmp_path / "a-masklabel.png")
    sheet = trained_sheet(surveyed(tmp_path, masks="files", unmasked_weight=0.2))
    column = np.asarray(sheet)[36:, 100, 0]
    assert (column[20], column[170]) == (255 - 51, 0)


@pytest.mark.parametrize("text", ["", "a cat", "word " * 200, "x" * 500, "a\tb\x00c"])
def test_captions_fit_under_their_pictures(text: str) -> None:
    font = ImageFont.load_default(12)
    lines = wrapped(text, font)
    assert len(lines) <= LINES
    assert all(font.getlength(line) <= TILE for line in lines)
    assert (lines[-1][-1:] == "…") == (len(text) > 300)


def test_the_tags_of_an_adapters_metadata(tmp_path: Path) -> None:
    picture(tmp_path / "own" / "a.png", caption="cat, red")
    picture(tmp_path / "own" / "b.png", caption="cat")
    picture(tmp_path / "class" / "c.png", caption="cat, old")
    prior = {"folder": str(tmp_path / "class"), "prompt": "cat"}
    found = surveyed(tmp_path / "own", prior=prior, trigger="sks")
    assert tag_frequency(found) == {"cat": 2, "sks": 2, "red": 1}
    assert report(found).class_pictures == 1


def test_the_document_has_every_message() -> None:
    root = Path(__file__).parents[3]
    sources = "\n".join(path.read_text() for path in (root / "training/loramux_train/data").glob("*.py"))
    told = set(re.findall(r'(?:notes\.tell|Note)\(\s*"(\w+)(?:" if \w+ else "\w+)?",\s*"(\w+)"', sources))
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (\w+)", (root / "docs/training-data.md").read_text(), re.M)
    written = {(weight, code) for codes, weight in rows for code in re.findall(r"\w+", codes)}
    assert {code for _, code in told} == {code for _, code in written}
    assert written - told == {("error", "broken")}  # told as a warning where broken pictures are skipped
