"""Settings are read strictly, from files and flags, and come back as they were written."""

import tomllib
from pathlib import Path
from typing import Any, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_train import config, settings_table
from loramux_train.errors import BadSetting

DATA = ["--data.folders", "pictures"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--adapter.rnk", "8"], r"adapter\.rnk is no setting; did you mean adapter\.rank\?"),
        (["--adaptr.rank", "8"], r"adaptr is no setting; did you mean adapter\?"),
        (["--data.resolutoin", "64"], r"data\.resolutoin is no setting; did you mean data\.resolution\?"),
        (["--run.xyz", "8"], r"run\.xyz is no setting; known: steps, accumulation"),
        (
            ["--adapter.rank", "huge"],
            r"adapter\.rank is 'huge': .*integer or is 'huge': .*'small', 'medium' or 'large'",
        ),
        (["--adapter.rank", "0"], r"adapter\.rank is 0: "),
        (["--optimiser.rate", "-1"], r"optimiser\.rate is -1: "),
        (["--run.steps", "1.5"], r"run\.steps is 1\.5: "),
        (["--adapter.dora", "true", "--adapter.rank_dropout", "0.1"], "dora measures B A as a whole.*expected 0"),
        (
            ["--optimiser.name", "prodigy", "--optimiser.text_encoder_rate", "0.5"],
            "prodigy finds one step size for all",
        ),
        (["--output.name", "../x"], r"output\.name is '\.\./x'"),
        (["--adapter.rank.small", "1", "--adapter.rank.x", "1"], r"adapter\.rank"),
        (["--run.steps"], "--run.steps has no value"),
        (["--learning_rate", "1"], r"learning_rate is no setting; did you mean tokens\.rate or optimiser\.rate\?"),
        (["--rank", "8"], r"rank is no setting; did you mean adapter\.rank\?"),
        (["--max_train_steps", "8"], r"did you mean run\.steps or samples\.steps\?"),
        (["--optimiser.seed", "8"], r"did you mean data\.seed or run\.seed or samples\.seed\?"),
        (["--optimizer.name", "adamw"], r"optimizer is no setting; did you mean optimiser\?"),
        (["--data.ground", "0,0"], r"data\.ground\.2 is missing"),
        (["--data.caption_extensions", ".tags,.txt"], "'.tags,.txt' is no ending, expected such as .txt"),
        (["steps", "5"], "'steps' is no flag"),
    ],
)
def test_what_cannot_be_is_told_by_name(flags: list[str], said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        config.read(None, [*DATA, *flags])


@pytest.mark.parametrize("word", ['"False"', '"true"', "1", "no"])
def test_a_word_is_no_truth_value(word: str) -> None:
    """bghira/SimpleTuner#1139: the string "False" read as true."""
    with pytest.raises(BadSetting, match=r"run\.gradient_checkpointing is .*valid boolean"):
        config.read(None, [*DATA, "--run.gradient_checkpointing", word])
    assert config.read(None, [*DATA, "--run.gradient_checkpointing", "false"]).run.gradient_checkpointing is False


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(BadSetting) as told:
        config.read(None, ["--adapter.rank", "0", "--run.steps", "0"])
    assert [line.split()[0] for line in str(told.value).splitlines()] == ["data", "adapter.rank", "run.steps"]


def test_flags_lie_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[data]\nfolders = ["a"]\nresolution = 64\n[adapter]\nrank = 8\nalpha = 2.0\n')
    read = config.read(file, ["--adapter.rank=16", "--run.save-every", "7", "--output.folder", "12"])
    assert (read.adapter.rank, read.adapter.alpha, read.run.save_every) == (16, 2.0, 7)
    assert read.output.folder == Path("12")


LISTS: dict[str, tuple[str, list[Any]]] = {
    "data.folders": ("a, b", ["a, b"]),
    "data.ground": ("0,10, 255", [0, 10, 255]),
    "data.caption_extensions": (".tags", [".tags"]),
    "tokens.new": ("<zib>", ["<zib>"]),
    "optimiser.betas": ("0.9,0.99", [0.9, 0.99]),
    "samples.prompts": ("a cat, asleep", ["a cat, asleep"]),
    "about.tags": ('"one", "two"', ["one", "two"]),
}
"""A flag's text, and what it is as TOML."""


def test_lists_are_all_read_by_one_rule() -> None:
    assert LISTS.keys() == {name for name, field in config.fields() if get_origin(field.annotation) is tuple}
    for name, (text, values) in LISTS.items():
        (section, key), folders = name.split("."), {} if name == "data.folders" else {"data": {"folders": ["x"]}}
        whole = dict(folders)
        whole[section] = whole.get(section, {}) | {key: values}
        given = ["--data.folders", "x", f"--{name}", text]
        read, wanted = (
            getattr(getattr(made, section), key) for made in (config.read(None, given), config.parse(whole))
        )
        assert read == wanted
        if len(values) == 1:
            whole[section] = whole[section] | {key: values[0]}
            assert getattr(getattr(config.parse(whole), section), key) == wanted


@pytest.mark.parametrize(
    ("text", "said"), [("[data", "are no TOML"), (None, "cannot be read: No such file"), ("x = 1979-05-27", "x is no")]
)
def test_files_that_are_no_settings(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "a.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BadSetting, match=said):
        config.read(file)


@pytest.mark.parametrize(
    ("flags", "rate", "text"),
    [
        ([], 1e-3, 5e-4),
        (["--base.path", "some/base"], 1e-4, 5e-5),
        (["--optimiser.name", "prodigy"], 1.0, 1.0),
        (["--optimiser.rate", "0.01"], 0.01, 0.005),
        (["--optimiser.text_encoder_rate", "0.01"], 1e-3, 0.01),
    ],
)
def test_rates_that_are_not_given_follow_base_and_optimiser(flags: list[str], rate: float, text: float) -> None:
    made = config.read(None, [*DATA, *flags]).optimiser
    assert (made.rate, made.text_encoder_rate) == (rate, text)


def test_resolution_follows_the_base_unless_it_is_given() -> None:
    assert config.read(None, DATA, lambda base: 64).data.resolution == 64
    assert config.read(None, [*DATA, "--data.resolution", "32"], lambda base: 64).data.resolution == 32


_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "adapter.rank": st.integers(1, 4096) | st.sampled_from(["small", "medium", "large"]),
    "adapter.alpha": st.floats(0.001, 1e6),
    "adapter.ranks.cross_attention": st.integers(1, 99),
    "adapter.ema": st.floats(0.01, 0.99),
    "targets.blocks": st.text(min_size=1, max_size=9).filter(lambda text: text.isprintable()),
    "optimiser.betas": st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)).map(list),
    "optimiser.clip": st.floats(0, 9),
    "loss.min_snr": st.floats(0.1, 20),
    "run.patience": st.integers(1, 9),
    "run.seed": st.integers(0, 2**32 - 1),
    "output.which": st.sampled_from(["last", "best"]),
    "data.caption_dropout": st.floats(0, 1),
}


@given(st.fixed_dictionaries({}, optional=_VALUES))
def test_settings_come_back_as_they_were_written(values: dict[str, Any]) -> None:
    nested: dict[str, Any] = {"data": {"folders": ["a b", {"path": "c", "repeats": 3}]}}
    for name, value in values.items():
        *sections, key = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    made = config.resolved(config.parse(nested))
    assert config.parse(tomllib.loads(config.to_toml(made))) == made


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in config.fields() if not field.description] == []


def test_the_documents_table_is_the_settings() -> None:
    document = (Path(__file__).parents[2] / "docs/training.md").read_text()
    table = document.partition("<!-- settings -->\n")[2].partition("\n<!-- /settings -->")[0]
    assert table == settings_table.text(), "put what `loramux train settings` prints into docs/training.md"
