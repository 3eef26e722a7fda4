"""What lies beside a file and what a push makes of it: by priority, bounded, and never a failure."""

import json
from pathlib import Path

import pytest

from loramux_client.sidecars import MAX_BYTES, Beside, read_sidecars

CIVITAI = {"trainedWords": ["sks dog", " a dog, "], "baseModel": "SD 1.5", "name": "v2", "model": {"name": "Dog"}}
WEB_UI = {
    "activation text": "sks, park",
    "preferred weight": 0.8,
    "description": "A dog.\nIn a park.",
    "sd version": "SD1",
    "notes": "mine",
}
CARD = '---\ntags:\n- lora\ninstance_prompt: "a photo of sks dog"\n---\n# A dog\ninstance_prompt: no\n'


def adapter(folder: Path, metadata: dict[str, str] | None = None, name: str = "dog.v2.safetensors") -> Path:
    """A file of which only the header matters."""
    header = json.dumps({"__metadata__": metadata or {}}).encode()
    file = folder / name
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    return file


def beside(folder: Path, name: str, content: object) -> None:
    (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def test_nothing_lies_there(tmp_path: Path) -> None:
    assert read_sidecars(adapter(tmp_path)) == Beside()
    assert read_sidecars(tmp_path / "nowhere" / "x.safetensors") == Beside()


def test_each_file_by_itself(tmp_path: Path) -> None:
    file = adapter(tmp_path)
    (tmp_path / "README.md").write_text(CARD)
    assert read_sidecars(file).said == {"trigger_words": ("a photo of sks dog",)}
    beside(tmp_path, "dog.v2.json", WEB_UI)
    found = read_sidecars(file)
    assert found.said == {
        "trigger_words": ("sks, park",),
        "default_weight": 0.8,
        "description": "A dog. In a park.",
        "base_model": "SD1",
    }
    beside(tmp_path, "dog.v2.civitai.info", CIVITAI)
    found = read_sidecars(file)
    assert found.said == {
        "trigger_words": ("sks dog", "a dog"),
        "base_model": "SD 1.5",
        "description": "A dog. In a park.",
        "default_weight": 0.8,
    }
    assert found.sources["trigger_words"] == "dog.v2.civitai.info" and found.sources["description"] == "dog.v2.json"
    assert found.warnings == ()


def test_what_the_file_says_with_more_weight_is_left_to_it(tmp_path: Path) -> None:
    """modelspec.trigger_phrase stands above all that lies beside it, ss_dataset_dirs and ss_tag_frequency below."""
    beside(tmp_path, "dog.v2.civitai.info", CIVITAI)
    for key in ("ss_dataset_dirs", "ss_tag_frequency", "modelspec.title"):
        assert read_sidecars(adapter(tmp_path, {key: "{}"})).trigger_words == ("sks dog", "a dog")
    found = read_sidecars(adapter(tmp_path, {"modelspec.trigger_phrase": "own", "ss_sd_model_name": "v1-5"}))
    assert found.said == {}
    assert read_sidecars(adapter(tmp_path, {"modelspec.trigger_phrase": " "})).trigger_words == ("sks dog", "a dog")


def test_a_model_card_of_several_files_is_nobodys(tmp_path: Path) -> None:
    file = adapter(tmp_path)
    adapter(tmp_path, name="cat.safetensors")
    (tmp_path / "README.md").write_text(CARD)
    assert read_sidecars(file) == Beside()


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        (b"{", "no JSON"),
        (b"[" * 200_000, "no JSON"),
        (b"[1]", "no JSON object"),
        (b"\xff\xfe", "no UTF-8"),
        (b" " * (MAX_BYTES + 1), f"more than {MAX_BYTES} bytes"),
        ({"activation text": 5}, "'activation text' is no text"),
        ({"preferred weight": "much"}, "'preferred weight' is no number from -16 to 16"),
        ({"preferred weight": 17}, "'preferred weight' is no number from -16 to 16"),
        ({"preferred weight": True}, "'preferred weight' is no number from -16 to 16"),
        (b'{"preferred weight": NaN}', "'preferred weight' is no number from -16 to 16"),
        (b'{"preferred weight": 1' + b"0" * 400 + b"}", "'preferred weight' is no number from -16 to 16"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_a_warning(tmp_path: Path, content: object, warning: str) -> None:
    beside(tmp_path, "dog.v2.json", content)
    found = read_sidecars(adapter(tmp_path))
    assert found.said == {}
    (said,) = found.warnings
    assert said.startswith("dog.v2.json: ") and warning in said and said.endswith("not used")


@pytest.mark.parametrize("words", ["sks", {"a": 1}, ["a", 5]])
def test_words_that_are_none(tmp_path: Path, words: object) -> None:
    beside(tmp_path, "dog.v2.civitai.info", CIVITAI | {"trainedWords": words})
    beside(tmp_path, "dog.v2.json", WEB_UI)
    found = read_sidecars(adapter(tmp_path))
    assert found.trigger_words == ("sks, park",), "the next place counts"
    assert found.warnings == ("dog.v2.civitai.info: 'trainedWords' is no list of texts: not used",)


def test_a_folder_of_that_name_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "dog.v2.json").mkdir()
    assert "Is a directory" in read_sidecars(adapter(tmp_path)).warnings[0]


def test_text_of_strangers_is_bounded_and_plain(tmp_path: Path) -> None:
    words = ["a\0b\u202e\nc", "", " ", "x" * 5000, "same", "same", "half \ud800", *(str(at) for at in range(100))]
    beside(tmp_path, "dog.v2.civitai.info", {"trainedWords": words, "baseModel": "y" * 9999})
    found = read_sidecars(adapter(tmp_path))
    assert found.trigger_words[:4] == ("a b c", "x" * 256, "same", "half")
    assert len(found.trigger_words) == 64 and len(found.base_model) == 1024
    beside(tmp_path, "dog.v2.json", WEB_UI | {"preferred weight": 0, "description": ""})
    assert read_sidecars(adapter(tmp_path)).default_weight is None, "0 is written where none was set"


def test_a_broken_adapter_is_for_others_to_refuse(tmp_path: Path) -> None:
    beside(tmp_path, "a.json", WEB_UI)
    for content in (b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b'\x0f\0\0\0\0\0\0\0{"__metadata__"'):
        (tmp_path / "a.safetensors").write_bytes(content)
        assert read_sidecars(tmp_path / "a.safetensors").trigger_words == ("sks, park",)
