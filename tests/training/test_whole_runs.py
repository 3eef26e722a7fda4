"""From a folder of pictures to a served adapter: what a person gets who runs `loramux train run`."""

import io
import json
import os
import resource
import signal
import tomllib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import original_checkpoint
import pytest
import tiny_training as tiny
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from served import served

from loramux_client import Client
from loramux_server.engine import base_file as served_file
from loramux_server.engine.base_folder import _check_parts, _digest
from loramux_store import Store
from loramux_train import base as bases
from loramux_train import base_file, checkpoint
from loramux_train.cli import train
from loramux_train.data.batches import FolderBatches
from loramux_train.data.survey import survey
from loramux_train.data.validation import validation_contents
from loramux_train.data_settings import DataSettings
from loramux_train.output.sample_sheet import SampleSheet
from loramux_train.training import Report, Training


def run(*words: object) -> int:
    return train([str(word) for word in words], result_action="return_value", exit_on_error=False, print_error=False)


@pytest.fixture(autouse=True)
def _as_in_a_process_of_its_own() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    AcceleratorState._reset_state(True)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tiny.write_pictures(tmp_path / "pictures", 6)


def flags(base: Path, out: Path, **more: object) -> list[object]:
    values: dict[str, object] = {
        "base.path": base, "data.resolution": 16, "data.batch_size": 2, "run.steps": 4, "run.device": "cpu",
        "run.threads": 1, "run.save_every": 2, "optimiser.rate": 0.05, "optimiser.warmup": 0.0, "samples.steps": 2,
        "samples.every": 2, "output.folder": out, **more,
    }  # fmt: skip
    return [word for name, value in values.items() for word in (f"--{name}", value)]


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


# to a shelf


@pytest.fixture
def single_file(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny base as one checkpoint. Both readers are given its blueprint, in which it differs from a real one."""
    parts = bases.load(bases.outline_of(base), torch.float32, torch.device("cpu"))
    vae = AutoencoderKL.from_pretrained(base / "vae")
    file = tmp_path / "single.safetensors"
    save_file(original_checkpoint.checkpoint(parts.unet, vae, list(parts.text_encoders)), file)
    configs = {part: json.loads((base / part / "config.json").read_text()) for part in ("unet", "vae", "text_encoder")}
    scheduler = json.loads((base / "scheduler/scheduler_config.json").read_text())
    blueprint = {**configs, "scheduler": scheduler, "pads": ["<|endoftext|>"]}
    monkeypatch.setattr(base_file, "_blueprint", lambda *_: blueprint)
    monkeypatch.setattr(base_file, "_tokenizer", lambda *_: parts.tokenizers[0])
    monkeypatch.setattr(served_file, "_blueprint", lambda *_: blueprint)
    monkeypatch.setattr(served_file, "tokenizer", lambda _: parts.tokenizers[0])
    return file


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_folder_of_pictures_becomes_a_served_adapter(
    kind: str,
    base: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    path = base if kind == "folder" else request.getfixturevalue("single_file")
    with served(tmp_path / "shelf", base=str(path)) as address:
        words = flags(path, tmp_path / "out", **{"data.trigger": "zib"})
        assert run("run", pictures, *words, "--push", "keys", "--server", address) == 0
        assert capsys.readouterr().out.splitlines()[-1] == "keys@1"
        with Client(address) as client:
            assert client.get_adapter("keys").trigger_words == ("zib",)
            asked = {"seed": 1, "steps": 2, "width": 64, "height": 64}
            plain = client.generate("a zib key", **asked).images[0].data
            drawn = client.generate("a zib key", adapters={"keys": 1.0}, **asked).images[0].data
            digest = client.server_info().base_digest
    one, other = (np.asarray(Image.open(io.BytesIO(data)), dtype=int) for data in (plain, drawn))
    assert np.abs(one - other).max() > 5
    about = metadata(tmp_path / "out/adapter.safetensors")
    assert about["loramux.base_digest"] == about["ss_new_sd_model_hash"] == digest


def test_a_folder_of_pictures_becomes_an_adapter_in_a_store(
    base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run", pictures, *flags(base, tmp_path / "out"), "--push", "keys", "--store", tmp_path / "store") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "keys@1"
    with Store.open(tmp_path / "store") as store:
        assert len(store.resolve("keys").report.matched) == 24


def test_a_server_that_is_gone_leaves_the_adapter_and_says_how_to_push_it(
    base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loramux_train.output.push.RETRIES", 0)
    monkeypatch.setattr("loramux_train.output.push.push.__defaults__", (None, 0))
    words = flags(base, tmp_path / "out", **{"samples.every": 0})
    assert run("run", pictures, *words, "--push", "keys", "--server", "127.0.0.1:9") == 1
    said = capsys.readouterr().err
    assert "does not answer now" in said and "loramux adapters push" in said
    assert (tmp_path / "out/adapter.safetensors").is_file() and report(tmp_path / "out")["files"]


# what it writes


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft"])
def test_a_file_tells_where_it_is_from(form: str, base: Path, pictures: Path, tmp_path: Path) -> None:
    out, thumbnail = tmp_path / "out", pictures / "0.png"
    more = {"data.trigger": "zib", "about.author": "Ada", "about.licence": "CC0-1.0", "about.thumbnail": thumbnail}
    more["data.buckets"] = "false" if form == "peft" else "true"
    assert run("run", pictures, *flags(base, out, **{"output.form": form, "output.name": "keys", **more})) == 0
    file = out / ("keys/unet/adapter_model.safetensors" if form == "peft" else "keys.safetensors")
    about = metadata(file)
    assert about["modelspec.trigger_phrase"] == "zib" and about["modelspec.author"] == "Ada"
    assert about["modelspec.license"] == "CC0-1.0" and about["modelspec.thumbnail"].startswith("data:image/png")
    assert (about["ss_network_dim"], about["ss_network_alpha"], about["ss_optimizer"]) == ("4", "4.0", "AdamW")
    assert (about["ss_steps"], about["ss_num_train_images"], about["ss_epoch"]) == ("4", "6", "2")
    assert json.loads(about["ss_tag_frequency"])["pictures"]["a zib key"] == 6
    assert about["ss_enable_bucket"] == str(form != "peft")
    outline = bases.outline_of(base)
    assert about["loramux.base_digest"] == _digest(base, _check_parts(base, 1)) == bases.digest(outline)


def test_the_report_tells_the_run(base: Path, tmp_path: Path) -> None:
    pictures, out = tiny.write_pictures(tmp_path / "pictures", 40), tmp_path / "out"
    assert run("run", pictures, *flags(base, out, **{"run.validate_every": 2})) == 0
    told = report(out)
    assert told["curves"]["loss"]["steps"] == [1, 2, 3, 4] and told["curves"]["validation"]["steps"] == [2, 4]
    assert told["data"]["held out"] == "4" and told["data"]["pictures"] == "36"
    assert told["files"] == ["adapter.safetensors"] and told["progress"]["step"] == 4
    assert len(told["samples"]) == 4 and all(pair["difference"] > 0.5 for pair in told["samples"])
    sides = {f"unet.attention, {side}" for side in ("down", "mid", "up")}
    assert {norm["group"] for norm in told["norms"]} == sides
    assert all(norm["ratio"] > 1e-3 for norm in told["norms"])
    assert tomllib.loads(told["config"]) == tomllib.loads((out / "train.toml").read_text())
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 3 and page.count("data:image") == 9 and "24 of unet" in page


def test_an_adapter_that_changes_no_picture_is_told(
    base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """B is not zero, but next to it."""
    more = {"optimiser.rate": 1e-9, "output.dtype": "fp32"}
    assert run("run", pictures, *flags(base, tmp_path / "out", **more)) == 0
    assert "loramux: warning: No effect: it changes no layer by more than" in capsys.readouterr().err
    assert any("No effect" in warning for warning in report(tmp_path / "out")["warnings"])


# samples


def losses(out: Path) -> list[float]:
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["event"] == "step"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_samples_change_no_bit_of_the_training(precision: str, base: Path, pictures: Path, tmp_path: Path) -> None:
    more = {"run.precision": precision, "adapter.dropout": 0.3, "adapter.ema": 0.5, "targets.text_encoder": "true"}
    for out, every in (("with", 1), ("without", 0)):
        assert run("run", pictures, *flags(base, tmp_path / out, **more, **{"samples.every": every})) == 0
        AcceleratorState._reset_state(True)
    with_, without = tmp_path / "with", tmp_path / "without"
    assert losses(with_) == losses(without) and len(set(losses(with_))) == 4
    one, other = (load_file(out / "adapter.safetensors") for out in (with_, without))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items()) and one.keys() == other.keys()
    sheet = SampleSheet(with_ / "samples.png", [f"a zib key, number {n}" for n in (0, 1, 3, 4)])
    assert [row.step for row in sheet.rows] == [0, 1, 2, 3, 4]
    assert np.asarray(sheet.rows[0].images[0]).tolist() != np.asarray(sheet.rows[-1].images[0]).tolist()
    assert not (without / "samples.png").exists()


def test_prompts_that_are_given_are_drawn(base: Path, pictures: Path, tmp_path: Path) -> None:
    more = {"samples.prompts": '["a moon", "a cat"]', "samples.width": 32, "samples.negative": "grey"}
    assert run("run", pictures, *flags(base, tmp_path / "out", **more)) == 0
    rows = SampleSheet(tmp_path / "out/samples.png", ["a moon", "a cat"]).rows
    assert [row.step for row in rows] == [0, 2, 4] and rows[0].images[0].size == (32, 16)


# stopping and going on


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int, number: int) -> Callable[[], None]:
    """A person's signal while a step is made; gives what takes it back."""
    step = Training.step

    def stepped(training: Training) -> Report:
        if training.done + 1 == at:
            os.kill(os.getpid(), number)
        return step(training)

    monkeypatch.setattr(Training, "step", stepped)
    return lambda: monkeypatch.setattr(Training, "step", step)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_with_a_report(
    number: int, base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run("run", pictures, *flags(base, whole)) == 0
    take_back = interrupted(monkeypatch, 3, number)
    assert run("run", pictures, *flags(base, out)) == 130
    assert "loramux: stopped at step 3 of 4; go on with --resume latest" in capsys.readouterr().err
    assert checkpoint.every(out / "checkpoints")[-1].name == "step-00000003.safetensors"
    told = report(out)
    assert told["files"] == [] and told["warnings"][0].startswith("stopped at step 3 of 4")
    assert len(told["samples"]) == 4 and not (out / "adapter.safetensors").exists()
    take_back()
    assert run("run", pictures, *flags(base, out), "--resume", "latest") == 0
    assert report(out)["run"]["started"] == told["run"]["started"]
    one, other = (load_file(folder / "adapter.safetensors") for folder in (whole, out))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert run("run", pictures, *flags(base, out), "--resume", "latest") == 1
    assert "already at step 4 of 4; raise run.steps" in capsys.readouterr().err


@contextmanager
def files_of_at_most(size: int) -> Generator[None]:
    """As on a disk that is full: Python ignores the signal, and a write that would be too large fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [60_000, 100])
def test_a_full_disk_ends_the_run_with_a_line_and_a_report_if_there_is_room(
    size: int, base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with files_of_at_most(size):
        assert run("run", pictures, *flags(base, out, **{"samples.every": 0}), "--quiet") == 1
    assert "loramux: [Errno 27] File too large" in capsys.readouterr().err
    assert not list(out.rglob("*.safetensors")) and not list(out.rglob(".*"))
    assert size == 100 or "File too large" in report(out)["warnings"][0]


def test_a_run_that_goes_back_draws_and_reports_its_own_course(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, labels = tmp_path / "out", [f"a zib key, number {n}" for n in (0, 1, 3, 4)]
    assert run("run", pictures, *flags(base, out)) == 0
    assert [row.step for row in SampleSheet(out / "samples.png", labels).rows] == [0, 2, 4]
    interrupted(monkeypatch, 3, signal.SIGINT)
    back = out / "checkpoints/step-00000002.safetensors"
    assert run("run", pictures, *flags(base, out, **{"optimiser.rate": 0.01}), "--resume", back) == 130
    assert [row.step for row in SampleSheet(out / "samples.png", labels).rows] == [0, 2]
    assert report(out)["progress"]["step"] == 3


def test_a_run_that_is_stopped_before_its_first_step_leaves_nothing(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is begun with it ignored
    monkeypatch.setattr(FolderBatches, "fill", lambda _: os.kill(os.getpid(), signal.SIGINT) or iter(()))
    assert run("run", pictures, *flags(base, tmp_path / "out")) == 130
    signal.signal(signal.SIGINT, before)
    assert "loramux: stopped" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dora", ["false", "true"])
def test_a_finished_run_writes_another_form_and_its_samples_anew(
    dora: str, base: Path, pictures: Path, tmp_path: Path
) -> None:
    """Without a further step. The base's pictures are those that were drawn before the first one."""
    out = tmp_path / "out"
    assert run("run", pictures, *flags(base, out, **{"adapter.dora": dora})) == 0
    first = report(out)["samples"]
    (out / "samples.png").unlink()
    more = {"adapter.dora": dora, "output.form": "peft"}
    assert run("run", pictures, *flags(base, out, **more), "--resume", "latest") == 0
    assert (out / "adapter/unet/adapter_model.safetensors").is_file() and len(losses(out)) == 4
    for one, other in zip(first, report(out)["samples"], strict=True):
        assert one["difference"] > 0.5 and other["difference"] == pytest.approx(one["difference"], abs=0.02)
    wider = {**more, "output.form": "diffusers", "samples.width": 32}
    (out / "adapter.safetensors").unlink()
    assert run("run", pictures, *flags(base, out, **wider), "--resume", "latest") == 0
    with Image.open(out / "samples.png") as sheet:
        assert sheet.width > 4 * 32


def test_changed_data_is_refused_by_name_unless_it_is_allowed(
    base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("run", pictures, *flags(base, out)) == 0
    (pictures / "1.txt").write_text("another key")
    (pictures / "2.png").unlink()
    (pictures / "2.txt").unlink()
    tiny.write_pictures(tmp_path / "more", 7, words="a moon")
    for name in ("6.png", "6.txt"):
        (tmp_path / "more" / name).rename(pictures / name)
    longer = [pictures, *flags(base, out, **{"run.steps": 6, "data.flip": "true"}), "--resume", "latest"]
    assert run("run", *longer) == 1
    said = capsys.readouterr().err
    for part in (
        "data.flip was False, is now True", f"new: {pictures}/6.png", f"gone: {pictures}/2.png",
        f"captions: {pictures}/1.png. Undo that, or go on with --changed-data",
    ):  # fmt: skip
        assert part in said
    assert run("run", *longer, "--changed-data") == 0
    assert report(out)["progress"]["step"] == 6


def test_changed_pictures_that_are_held_out_are_noticed(
    base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = flags(base, tmp_path / "out", **{"data.validation_share": 0.2})
    assert run("run", pictures, *made) == 0
    share = DataSettings.model_validate({"folders": [str(pictures)], "resolution": 16, "validation_share": 0.2})
    (held,) = survey(share).kept_out
    held.source.path.with_suffix(".txt").write_text("quite another thing")
    assert run("run", pictures, *made, "--run.steps", 5, "--resume", "latest") == 1
    assert f"changed, or their captions: {held.source.path}." in capsys.readouterr().err


def test_a_folder_that_was_renamed_is_the_same_data(base: Path, pictures: Path, tmp_path: Path) -> None:
    assert run("run", pictures, *flags(base, tmp_path / "out")) == 0
    moved = pictures.rename(tmp_path / "moved")
    assert run("run", moved, *flags(base, tmp_path / "out", **{"run.steps": 5}), "--resume", "latest") == 0


# class pictures, and pictures that are held out


@pytest.mark.parametrize(("count", "share", "held_out"), [(39, None, 0), (40, None, 4), (40, 0.0, 0), (39, 0.1, 4)])
def test_a_tenth_of_forty_pictures_is_held_out(count: int, share: float | None, held_out: int) -> None:
    settings = DataSettings.model_validate({"folders": ["x"], "validation_share": share})
    assert len(validation_contents(map(str, range(count)), settings)) == held_out


def test_class_pictures_are_drawn_by_the_base(base: Path, pictures: Path, tmp_path: Path) -> None:
    drawn: list[dict[str, bytes]] = []
    for turn in ("one", "two"):
        folder = tmp_path / turn / "class"
        tiny.write_pictures(folder, 1, edge=24, words="a key of my own")
        prior = {"data.prior.folder": folder, "data.prior.prompt": "a key", "data.prior.count": 4}
        assert run("run", pictures, *flags(base, tmp_path / turn / "out", **prior)) == 0
        drawn.append({path.name: path.read_bytes() for path in folder.glob("class-*.png")})
        AcceleratorState._reset_state(True)
    assert drawn[0] == drawn[1] and len(set(drawn[0].values())) == 3
    told = report(tmp_path / "two/out")
    assert told["data"]["class pictures"] == "4"
    assert metadata(tmp_path / "two/out/adapter.safetensors")["ss_num_reg_images"] == "4"


def test_check_takes_what_run_takes(
    base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("run", pictures, *flags(base, out, **{"data.flip": "true"})) == 0
    capsys.readouterr()
    other = ("--output.folder", tmp_path / "other")
    assert run("check", out / "train.toml", "--json", "--data.batch_size", 3, *other) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["pictures"], told["batch_size"], told["buckets"][0]["width"]) == (6, 3, 16)
