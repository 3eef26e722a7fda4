"""`loramux train`, as a user runs it, on the built-in base."""

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from loramux_train import checkpoint
from loramux_train.cli import train
from loramux_train.config import fields
from loramux_train.snapshot import Snapshot
from loramux_train.target_settings import ABOUT, BLOCKS


def run(*words: str) -> int:
    return train(list(words), result_action="return_value", exit_on_error=False, print_error=False)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (64, 64), (40 * number, 90, 200 - 40 * number)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a key number {number}")
    return folder


def _flags(pictures: Path, out: Path, **more: Any) -> list[str]:
    values = {"data.folders": pictures, "data.batch_size": 2, "run.steps": 2, "run.device": "cpu", "run.threads": 1,
              "samples.every": 0, "output.folder": out, **more}  # fmt: skip
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def test_a_folder_becomes_an_adapter(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    more = {"data.validation_share": 0.2, "data.cache": cache}
    assert run("run", *_flags(pictures, out, **more)) == 0
    told = capsys.readouterr().out
    assert "42 layers" in told and "adapter.safetensors: " in told
    assert max(float(t.abs().max()) for n, t in load_file(out / "adapter.safetensors").items() if "lora_up" in n) > 0
    beside = tomllib.loads((out / "train.toml").read_text())
    assert beside["data"]["resolution"] == 64 and beside["optimiser"]["rate"] == 1e-3
    assert sorted(path.name for path in cache.iterdir()) == ["latents", "texts"]
    first = (out / "adapter.safetensors").read_bytes()
    again = tmp_path / "again"
    beside["output"]["folder"] = str(again)
    file = tmp_path / "again.toml"
    file.write_text((out / "train.toml").read_text().replace(str(out), str(again)))
    assert run("run", str(file), "--quiet") == 0
    assert load_file(again / "adapter.safetensors").keys() == load_file(out / "adapter.safetensors").keys()
    assert len(first) == (again / "adapter.safetensors").stat().st_size


def test_pictures_without_captions_become_a_word(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for caption in pictures.glob("*.txt"):
        caption.unlink()
    flags = _flags(pictures, tmp_path / "out", **{"tokens.new": "<zib>", "tokens.alone": "true"})
    assert run("run", *flags, "--data.trigger", "<zob>", "--data.templates", "style") == 2
    assert "'<zib>' stands in no caption" in capsys.readouterr().err
    assert run("run", *flags, "--data.trigger", "<zib>", "--data.templates", "style") == 0
    told = capsys.readouterr().out
    assert "new words: 1, 128 parameters" in told and "embeddings/zib.safetensors: " in told
    assert [path.name for path in (tmp_path / "out").rglob("*.safetensors")].count("zib.safetensors") == 1
    assert not (tmp_path / "out/adapter.safetensors").exists()


def test_captions_that_are_cut_are_told(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the note of the data, or where only the vectors of a word make them too long, by a line of their own."""
    (pictures / "0.txt").write_text("key " * 2000)
    assert run("run", *_flags(pictures, tmp_path / "a", **{"run.steps": 1}), "--quiet") == 0
    said = capsys.readouterr().err
    assert "loramux: warning: captions that are cut" not in said and said.count("1925 are cut\n") == 2
    (pictures / "0.txt").write_text("<zib>" + " key" * 50)
    words = {"tokens.new": '[{word = "<zib>", vectors = 30}]', "run.steps": 1}
    assert run("run", *_flags(pictures, tmp_path / "b", **words), "--quiet") == 0
    said = capsys.readouterr().err
    assert said.count("since the vectors of new words take room: 1, the first is '<zib> key") == 2
    told = json.loads((tmp_path / "b/report.json").read_text())["warnings"]
    assert len([line for line in told if "are cut" in line]) == 1


def test_dry_run_prints_the_plan_and_writes_nothing(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = _flags(pictures, out, **{"targets.blocks": "article", "adapter.rank": "large"})
    assert run("run", "--dry-run", *flags) == 0
    told = capsys.readouterr().out
    assert "36 layers, 106,496 parameters" in told
    assert not out.exists()


def test_what_diffusers_will_not_read_is_said_with_the_plan_and_in_the_report(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = _flags(pictures, out, **{"adapter.dora": "true", "adapter.ranks.cross_attention": 2, "run.steps": 1})
    for more in (["--dry-run"], []):
        assert run("run", *flags, *more) == 0
        said = capsys.readouterr().err
        assert "warning: diffusers does not read DoRA" in said and "does not read alphas that differ" in said
    warnings = json.loads((out / "report.json").read_text())["warnings"]
    assert sum("diffusers does not read" in warning for warning in warnings) == 2
    other = ("--output.form", "diffusers", "--output.folder", str(tmp_path / "other"))
    assert run("run", "--dry-run", *flags, *other) == 0
    assert "does not read" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (["--adapter.rnk", "3"], 2, "loramux: adapter.rnk is no setting; did you mean adapter.rank?"),
        (["--base.path", "nowhere"], 1, "loramux: base nowhere is no folder and no file"),
        (["--data.folders", "nowhere"], 1, "loramux: "),
        (["--push", "No Name"], 1, "loramux: push: "),
        (["--server", "localhost:1"], 2, "--server says where to push; expected --push NAME"),
        (["--push", "a", "--server", "localhost:1", "--store", "b"], 2, "--server and --store: expected one of them"),
        (
            ["--output.form", "peft", "--targets.text_encoder", "true", "--push", "a", "--store", "b"],
            1,
            "an adapter on the shelf is one file; save as kohya or diffusers",
        ),
        (["--about.thumbnail", "nowhere.png"], 2, "about.thumbnail is nowhere.png, which is no picture"),
        (["--resume", "latest"], 1, "there are no checkpoints in"),
    ],
)
def test_an_error_is_a_line_and_a_status(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], status: int, said: str
) -> None:
    out = tmp_path / "out"
    assert run("run", *_flags(pictures, out), *flags) == status
    assert said in capsys.readouterr().err
    assert not out.exists()


REFUSED = [
    (["--adapter.rank", "4000"], "rank 4000 of self_attention is more than"),
    (["--run.precision", "fp16"], "run.precision is fp16, which needs a CUDA device"),
    (["--optimiser.name", "adamw8bit"], "needs the package bitsandbytes"),
    (["--output.which", "best"], "output.which is best, which needs held-out pictures"),
    (["--adapter.ranks.convolution", "2"], "adapter.ranks.convolution is 2, but no layer of that group is trained"),
    (["--optimiser.text_encoder_stop", "2"], "optimiser.text_encoder_stop is 2, but targets.text_encoder is false"),
    (["--run.patience", "2"], "run.patience is 2, which needs held-out pictures"),
    (["--tokens.new", "<zib>"], "'<zib>' stands in no caption"),
    (["--tokens.new", "key"], "'key' is a word of the base already"),
    (["--about.thumbnail", "nowhere.png"], "about.thumbnail is nowhere.png, which is no picture"),
    (["--output.tensorboard", "true"], "output.tensorboard needs the package tensorboardX"),
    (["--output.folder", "HELD"], "holds a run, the newest checkpoint is step-00000001.safetensors"),
    (["--data.folders", "nowhere"], "nowhere"),
]


@pytest.mark.parametrize(("flags", "said"), REFUSED)
def test_check_and_a_dry_run_refuse_what_a_run_refuses(
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    said: str,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    checkpoint.write(tmp_path / "held/checkpoints", Snapshot(1, {}, {}), {}, keep=1)
    words = [str(tmp_path / "held") if word == "HELD" else word for word in flags]
    given = [*_flags(pictures, tmp_path / "out"), *words]
    statuses = {command: run(*command, *given) for command in (("check",), ("run", "--dry-run"), ("run",))}
    told = capsys.readouterr()
    assert statuses[("run",)] == statuses[("run", "--dry-run")] != 0 and statuses[("check",)] == 3
    assert told.err.count(said) == 2 and told.out.count(said) == 1 and "verdict: refused" in told.out
    assert not (tmp_path / "out").exists()


def test_a_dry_run_checks_where_a_run_would_go_on(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = _flags(pictures, tmp_path / "out", **{"run.steps": 1})
    assert run("run", *flags) == 0
    assert run("run", "--dry-run", *flags, "--resume", "latest") == 1
    assert "already at step 1 of 1" in capsys.readouterr().err
    longer = [*flags, "--run.steps", "2", "--resume", "latest", "--dry-run"]
    assert run("run", *longer) == 0
    (pictures / "0.txt").write_text("another")
    assert run("run", *longer) == 1
    assert "the data is not what the checkpoint was made with" in capsys.readouterr().err
    assert run("run", *longer, "--changed-data") == 0


def test_presets_are_all_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("presets") == 0
    words = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert words == {*ABOUT, *BLOCKS, "small", "medium", "large"}


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    run("run", "--help")
    told = capsys.readouterr().out
    assert [name for name, _ in fields() if f"--{name} " not in told] == []
