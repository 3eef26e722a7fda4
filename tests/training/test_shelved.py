"""What a run with new words puts on a shelf: a server's, or a store's folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_training as tiny
import torch
from accelerate.state import AcceleratorState
from served import served

from loramux_client import Client
from loramux_store import Store
from loramux_train.cli import train


@pytest.fixture(autouse=True)
def _as_in_a_process_of_its_own() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    AcceleratorState._reset_state(True)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of two text encoders, whose embedding files name no word."""
    return tiny.write_base(tmp_path_factory.mktemp("base") / "pair", two=True)


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("shelf"), base=str(base)) as address:
        yield address


def run(base: Path, out: Path, *words: object) -> int:
    pictures = tiny.write_pictures(out.parent / "pictures", 3, words="a <zib> in My_Style")
    flags = {
        "base.path": base, "data.resolution": 16, "run.steps": 1, "run.device": "cpu", "run.threads": 1,
        "optimiser.rate": 0.05, "optimiser.warmup": 0.0, "samples.every": 0, "output.folder": out,
    }  # fmt: skip
    said = ["run", pictures, *(word for name, value in flags.items() for word in (f"--{name}", value)), *words]
    return train([str(word) for word in said], result_action="return_value", exit_on_error=False, print_error=False)


TWO = '["<zib>", "My_Style"]'
KINDS: dict[str, tuple[list[str], dict[str, str]]] = {
    "a word alone": (["--tokens.new", "<zib>", "--tokens.alone", "true"], {"": "<zib>"}),
    "words alone": (["--tokens.new", TWO, "--tokens.alone", "true"], {"-zib": "<zib>", "-my_style": "My_Style"}),
    "words and a LoRA": (["--tokens.new", TWO], {"": "", "-zib": "<zib>", "-my_style": "My_Style"}),
    "a word and PEFT's form": (["--tokens.new", "<zib>", "--output.form", "peft"], {"": "", "-zib": "<zib>"}),
    "a bundle": (["--tokens.new", TWO, "--tokens.bundle", "true"], {"": ""}),
}
"""Settings; by what follows the name that was asked for: the word that each embedding is, "" of LoRAs."""


@pytest.mark.parametrize("kind", KINDS)
def test_words_get_on_a_server_that_draws_with_them(
    kind: str, base: Path, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (said, wanted), name = KINDS[kind], kind.lower().replace(" ", "-").replace("'", "")
    assert run(base, tmp_path / "out", *said, "--push", name, "--server", server) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.endswith("@1")]
    assert told == [f"{name}{end}@1" for end in wanted]
    with Client(server) as client:
        shelf = {adapter.name: adapter for adapter in client.list_adapters()}
        assert {item for item in shelf if item.startswith(name)} == {f"{name}{end}" for end in wanted}
        drawn = client.generate("a <zib> in my_style", adapters={f"{name}{end}": 1.0 for end in wanted}, steps=1)
    used = {each.adapter: each for each in drawn.applied.adapters}
    assert {item: each.trigger for item, each in used.items()} == {f"{name}{end}": word for end, word in wanted.items()}
    assert len(used[f"{name}{next(iter(wanted))}"].bundled_triggers) == (2 if kind == "a bundle" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_words_get_into_a_store(
    kind: str, base: Path, pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said, wanted = KINDS[kind]
    for encoders, path in {"one": base, "two": pair}.items():
        out, store = tmp_path / encoders / "out", tmp_path / encoders / "store"
        assert run(path, out, *said, "--push", "keys", "--store", store) == 0
        assert capsys.readouterr().out.splitlines()[-len(wanted) :] == [f"keys{end}@1" for end in wanted]
        with Store.open(store) as shelf:
            found = {end: shelf.resolve(f"keys{end}").report.embedding for end in wanted}
        assert {end: "" if each is None else each.trigger for end, each in found.items()} == wanted


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tokens.new", "<日本>", "--data.trigger", "<日本>"], "the new word '<日本>': "),
        (["--output.form", "peft", "--targets.text_encoder", "true"], "each of 2 models"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_training(
    words: list[str], said: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(base, tmp_path / "out", *words, "--push", "keys", "--store", tmp_path / "store") == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "store").exists()
