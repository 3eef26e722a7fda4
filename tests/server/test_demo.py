"""The demo's own parts; `make demo` is the whole."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from loramux_client.shelf import Adapter, AdapterVersion, FileNotes
from loramux_server.demo import SEPIA, column_label, demo
from loramux_server.demo_requests import blend_text, crowd, sheet_blends, sheet_rows
from loramux_server.demo_server import DemoFailed, Ready, read_gauge, read_ready
from loramux_server.demo_sheet import MARGIN, TILE, Sheet, SheetRow, draw_sheet, sheet_size, tile_box, wrap


def adapter(name: str, *trigger_words: str) -> Adapter:
    """As a listing tells it: only its name and trigger words matter here."""
    version = AdapterVersion(
        name, 1, "d", "b", 1, "lora", "tiny", "l", 8, None,
        embedding=None, device_bytes=1, notes=FileNotes((), "", "", ""),
    )  # fmt: skip
    return Adapter(
        name, version, {}, None, trigger_words, "", None, None, None,
        licence="", base_model="", aliases={}, etag="", trigger_source="", asked_version=None, pins={}, tier="disk",
    )  # fmt: skip


SHELF = [adapter("glossy"), adapter("ink"), adapter("noto"), adapter("sepia"), adapter("zib", "zib")]


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


def test_the_crowd_has_blends_of_none_to_three_all_different() -> None:
    asks = crowd(SHELF)
    blends = [ask.blend for ask in asks]
    assert len(asks) >= 8
    assert len(set(blends)) == len(blends)
    assert {len(blend) for blend in blends} == {0, 1, 2, 3}
    assert len({ask.steps for ask in asks}) > 2
    assert len({ask.guidance for ask in asks}) > 2


def test_a_subject_is_asked_for_by_its_trigger_word() -> None:
    assert {ask.prompt for ask in crowd(SHELF) if "zib" in dict(ask.blend)} == {"a zib"}
    assert sheet_rows(SHELF)[-1][0] == "a zib"
    assert "a zib" not in dict(sheet_rows(SHELF[:-1]))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_shelf_gives_a_demo(count: int) -> None:
    shelf = SHELF[:count]
    assert crowd(shelf)
    assert sheet_blends(shelf)[0] == ()
    assert len(sheet_rows(shelf)) == 5


def test_the_sheet_has_a_column_for_each_adapter_and_two_blends() -> None:
    blends = sheet_blends(SHELF)
    assert [len(blend) for blend in blends] == [0, 1, 1, 1, 1, 1, 2, 3]
    assert column_label(blends[0], {}) == ("no adapter",)
    assert column_label(blends[1], {"glossy": 16}) == ("glossy", "rank 16, weight 1")
    assert column_label(blends[-1], {}) == ("blend of three", "zib 0.6 + noto 0.6 + sepia 0.6")
    assert blend_text(()) == "none"


def test_tiles_do_not_overlap_and_stay_on_the_sheet() -> None:
    boxes = [tile_box(column, row) for column in range(3) for row in range(2)]
    width, height = sheet_size(3, 2)
    assert max(box[2] for box in boxes) == width - MARGIN
    assert max(box[3] for box in boxes) == height - MARGIN
    for one in boxes:
        others = [box for box in boxes if box != one]
        assert all(one[2] <= b[0] or b[2] <= one[0] or one[3] <= b[1] or b[3] <= one[1] for b in others)


def test_pictures_land_in_their_tiles() -> None:
    colours = ["#ff0000", "#00ff00", "#0000ff"]
    row = SheetRow(("a prompt", "seed 1"), tuple(map(picture, colours)))
    sheet = Sheet("title", "subtitle", (("one",), ("two", "b"), ("three",)), (row, row))
    drawn = draw_sheet(sheet)
    assert drawn.size == sheet_size(3, 2)
    for column, colour in enumerate(colours):
        left, top, _, _ = tile_box(column, 1)
        middle = drawn.getpixel((left + TILE // 2, top + TILE // 2))
        assert "#%02x%02x%02x" % middle == colour  # pyright: ignore[reportOperatorIssue]  # noqa: UP031


def test_labels_wrap_between_words() -> None:
    pen, font = ImageDraw.Draw(Image.new("RGB", (9, 9))), ImageFont.load_default(14)
    lines = wrap(pen, "a fox on a blue background", 14, 80)
    assert " ".join(lines) == "a fox on a blue background"
    assert len(lines) > 1
    assert all(pen.textlength(line, font) <= 80 for line in lines)


def test_the_ready_line_says_where() -> None:
    line = "loramux ready grpc=127.0.0.1:5 http=127.0.0.1:6 base=builtin\n"
    assert read_ready(line) == Ready("127.0.0.1:5", "127.0.0.1:6", "builtin")
    assert read_ready("something else") is None


def test_the_gauge_is_read_from_the_metrics() -> None:
    text = "# HELP x\nloramux_distinct_blends_per_forward_max 8.0\nother 1\n"
    assert read_gauge(text) == 8
    with pytest.raises(DemoFailed):
        read_gauge("other 1\n")


def test_the_uploaded_adapter_is_no_seed() -> None:
    assert SEPIA.parent.name == "demo"


@pytest.mark.long
def test_the_demo_shows_the_main_job(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert demo(output=tmp_path / "out" / "demo.png") == 0
    shown = capfd.readouterr().out
    assert "over gRPC while" in shown
    assert int(shown.partition("distinct blends in the fullest forward: ")[2].split()[0]) >= 8
    with Image.open(tmp_path / "out" / "demo.png") as sheet:
        assert sheet.size == sheet_size(8, 5)
