"""Folders as people have them: what is found, and what is said of what is not as it should be."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from picture_folders import codes, line, picture, settings, surveyed

from loramux_train.data.finding import Source, find
from loramux_train.data.notes import DataError, Notes


def _found(*folders: Path, **others: Any) -> dict[str, Source]:
    return {source.path.name: source for source in find(settings(*folders, **others), Notes())}


def _captions(*folders: Path, **others: Any) -> dict[str, tuple[str, ...]]:
    return {name: source.captions for name, source in _found(*folders, **others).items()}


@pytest.mark.parametrize("ending", [".txt", ".caption", ".TXT"])
def test_captions_are_found_in_either_ending_kohya_ss_927(tmp_path: Path, ending: str) -> None:
    picture(tmp_path / "a.png").with_suffix(ending).write_text("a cat\n")
    picture(tmp_path / "b.JPG").with_suffix(ending).write_text("a\tdog")
    assert _captions(tmp_path) == {"a.png": ("a cat",), "b.JPG": ("a dog",)}
    assert not surveyed(tmp_path).errors


def test_pictures_without_captions_refuse_the_run_kohya_ss_988(tmp_path: Path) -> None:
    for name in "abcdefg":
        picture(tmp_path / f"{name}.png").with_suffix(".tags").write_text("a cat")
    found = surveyed(tmp_path)
    with pytest.raises(DataError, match=r"7 of 7 pictures .*no caption; .* end in \.tags: add it to caption_ext"):
        found.require()
    assert line(found, "no_caption").endswith("and 2 more")
    assert not surveyed(tmp_path, caption_extensions=["tags"]).errors


def test_one_caption_for_all_as_dreambooth_has_it(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    folder = {"path": str(tmp_path), "caption": "photo of sks cat"}
    assert set(_captions(folders=[folder]).values()) == {("photo of sks cat",)}
    assert codes(surveyed(folders=[folder]), "info") == {"folder_caption"}


def test_a_fallback_for_some_is_told_with_their_names(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="a cat")
    picture(tmp_path / "b.png")
    found = surveyed(folders=[{"path": str(tmp_path), "caption": "photo of sks cat"}])
    found.require()
    assert "1 of 2 pictures" in line(found, "no_caption")
    assert "b.png" in line(found, "no_caption")


def test_kohya_folders_have_repeats_and_class_words(tmp_path: Path) -> None:
    picture(tmp_path / "10_sks cat" / "a.png")
    picture(tmp_path / "3_dog" / "deep" / "b.png")
    picture(tmp_path / "3_dog" / "c.png", caption="a brown dog")
    found = _found(tmp_path)
    assert {name: (s.repeats, s.captions) for name, s in found.items()} == {
        "a.png": (10, ("sks cat",)),
        "b.png": (3, ("dog",)),
        "c.png": (3, ("a brown dog",)),
    }
    assert _found(tmp_path / "10_sks cat")["a.png"].repeats == 10


def test_repeats_of_the_settings_win_and_each_folder_has_its_own(tmp_path: Path) -> None:
    picture(tmp_path / "10_cat" / "a.png")
    picture(tmp_path / "dogs" / "b.png", caption="dog")
    folders = [{"path": str(tmp_path / "10_cat"), "repeats": 2}, {"path": str(tmp_path / "dogs"), "repeats": 7}]
    assert {name: source.repeats for name, source in _found(folders=folders).items()} == {"a.png": 2, "b.png": 7}


def test_a_year_is_not_taken_for_repeats(tmp_path: Path) -> None:
    picture(tmp_path / "2024_holiday" / "a.png", caption="a beach")
    found = surveyed(tmp_path)
    assert found.pictures[0].source.repeats == 1
    assert "2024_holiday" in line(found, "repeats")


def test_imagefolder_lists_with_other_columns(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "train" / "b.png")
    rows = [
        {"file_name": "a.png", "text": "a cat", "score": 3},
        {"file_name": "train/b.png", "text": "a dog", "score": 1},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert _captions(tmp_path) == {"a.png": ("a cat",), "b.png": ("a dog",)}
    assert "score" in line(surveyed(tmp_path), "other_columns")


def test_imagefolder_lists_as_csv_with_another_column(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text('file_name,prompt\na.png,"a cat, asleep"\n')
    assert _captions(tmp_path, caption_column="prompt") == {"a.png": ("a cat, asleep",)}
    assert "it has file_name, prompt (set caption_column)" in line(surveyed(tmp_path), "list")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"file_name": "gone.png", "text": "x"}', "line 2: no picture 'gone.png'"),
        ('{"file_name": "../a.png", "text": "x"}', "line 2: no picture '../a.png'"),
        ('{"file_name": "a.png", "text": "x"}', "line 2: 'a.png' is listed twice"),
        ('{"file_name": "a.png", "text": 3}', "line 2: text is 3, expected a text"),
        ('{"text": "x"}', "line 2: file_name is None"),
        ("[1]", "line 2: [1] is no JSON object"),
        ("{", "line 2: no JSON"),
    ],
)
def test_faults_of_a_list_name_its_line(tmp_path: Path, row: str, says: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}\n' + row)
    found = surveyed(tmp_path)
    assert says in line(found, "list")
    assert found.errors


def test_another_caption_in_a_list_than_in_a_file_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="from the file")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "from the list"}')
    assert _captions(tmp_path) == {"a.png": ("from the list",)}
    assert "several_captions" in codes(surveyed(tmp_path), "warning")


def test_the_wrong_level_names_where_pictures_are_kohya_ss_2148(tmp_path: Path) -> None:
    picture(tmp_path / "project" / "img" / "10_cat" / "a.png")
    (tmp_path / "project" / "log").mkdir()
    told = line(surveyed(tmp_path / "project" / "log"), "no_pictures")
    assert str(tmp_path / "project" / "img" / "10_cat") + " (1)" in told
    assert not surveyed(tmp_path / "project").errors


def test_class_pictures_are_not_swallowed_with_the_project_folder(tmp_path: Path) -> None:
    picture(tmp_path / "img" / "10_sks cat" / "a.png")
    picture(tmp_path / "reg" / "1_cat" / "b.png")
    assert "prior.folder" in line(surveyed(tmp_path), "prior_is_trained_on")


def test_an_empty_folder_and_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "one" / "two" / "empty").mkdir(parents=True)
    assert "it is empty" in line(surveyed(tmp_path / "one" / "two" / "empty"), "no_pictures")
    told = line(surveyed(tmp_path / "one" / "tow"), "no_folder")
    assert told.endswith("tow does not exist; folders beside it: two")
    file = picture(tmp_path / "one" / "a.png")
    assert "is a file, expected a folder" in line(surveyed(file), "no_folder")


def test_a_caption_without_a_picture_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="a cat")
    (tmp_path / "b.txt").write_text("a dog")
    found = surveyed(tmp_path)
    found.require()
    assert "b.txt" in line(found, "caption_without_picture")


def test_pictures_of_one_stem_share_a_caption_and_are_both_used(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="a cat")
    picture(tmp_path / "a.jpg")
    assert _captions(tmp_path) == {"a.png": ("a cat",), "a.jpg": ("a cat",)}
    assert "same_stem" in codes(surveyed(tmp_path), "warning")
    (tmp_path / "a.jpg.txt").write_text("a dog")
    assert _captions(tmp_path) == {"a.png": ("a cat",), "a.jpg": ("a dog",)}


def test_captions_match_names_in_either_form_of_unicode(tmp_path: Path) -> None:
    name = "caf\u00e9 \u732b"
    picture(tmp_path / (unicodedata.normalize("NFD", name) + ".png"))
    (tmp_path / (unicodedata.normalize("NFC", name) + ".txt")).write_text("un chat \u732b", "utf-8")
    (source,) = find(settings(tmp_path), Notes())
    assert source.captions == ("un chat \u732b",)
    assert source.path.exists()


def test_names_that_only_unicode_forms_tell_apart_are_refused(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        picture(tmp_path / (unicodedata.normalize(form, "caf\u00e9") + ".png"), caption="x")
    assert "same_name" in codes(surveyed(tmp_path), "error")


def test_hidden_and_other_files_are_counted_not_trained_on(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="a cat")
    picture(tmp_path / "._a.png")
    picture(tmp_path / ".thumbnails" / "a.png")
    picture(tmp_path / "__MACOSX" / "a.png")
    (tmp_path / "clip.mp4").write_bytes(b"")
    (tmp_path / "a.npz").write_bytes(b"")
    found = surveyed(tmp_path)
    assert len(found.pictures) == 1
    assert codes(found, "info") == {"hidden", "other_files"}
    assert "clip.mp4" in line(found, "other_files")
    assert "a.npz" in line(found, "other_files")


def test_links_are_followed_once(tmp_path: Path) -> None:
    picture(tmp_path / "real" / "a.png", caption="a cat")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "photos")
    assert list(_captions(tmp_path / "photos")) == ["a.png"]


def test_a_picture_of_two_folders_is_used_once(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "best" / "a.png", caption="a cat")
    found = surveyed(tmp_path / "photos", tmp_path / "photos" / "best")
    assert len(found.pictures) == 1
    assert "found_twice" in codes(found, "warning")


@pytest.mark.parametrize(
    ("content", "code", "weight"),
    [
        (b"\xff\xfea\x00", "caption_unreadable", "error"),
        (b"", "empty_caption", "warning"),
        (b"x" * ((1 << 20) + 1), "caption_unreadable", "error"),
        (b"one\ntwo", "several_lines", "warning"),
    ],
)
def test_caption_files_that_are_none(tmp_path: Path, content: bytes, code: str, weight: str) -> None:
    picture(tmp_path / "a.png").with_suffix(".txt").write_bytes(content)
    assert code in codes(surveyed(tmp_path), weight)


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path: Path) -> None:
    picture(tmp_path / "a.png").with_suffix(".txt").write_bytes(b"\xef\xbb\xbfa cat")
    assert _captions(tmp_path) == {"a.png": ("a cat",)}


def test_each_line_is_a_caption_if_asked_for(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="a cat\n\n a small  cat \n")
    assert _captions(tmp_path) == {"a.png": ("a cat a small cat",)}
    assert _captions(tmp_path, caption_lines="each") == {"a.png": ("a cat", "a small cat")}


def test_masks_are_never_trained_on_as_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="a cat")
    picture(tmp_path / "a-masklabel.png")
    picture(tmp_path / "b.png", caption="a dog")
    picture(tmp_path / "mask" / "b.png")
    found = _found(tmp_path, masks="files")
    assert {name: source.mask.name for name, source in found.items()} == {"a.png": "a-masklabel.png", "b.png": "b.png"}
    assert list(_found(tmp_path)) == ["a.png", "b.png"]
    assert "masks_unused" in codes(surveyed(tmp_path), "warning")


def test_masks_and_pictures_that_do_not_belong_together(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="a cat")
    picture(tmp_path / "b-masklabel.png")
    found = surveyed(tmp_path, masks="files")
    assert "mask_without_picture" in codes(found, "error")
    assert "no_mask" in codes(found, "warning")


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (64, 48), caption="a cat")
    picture(tmp_path / "a-masklabel.png", (48, 64))
    assert "its mask a-masklabel.png: 48x64 px, the picture has 64x48" in line(
        surveyed(tmp_path, masks="files"), "broken"
    )


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "a.txt").write_text("a cat")
    assert "a.png: No such file or directory" in line(surveyed(tmp_path), "broken")
