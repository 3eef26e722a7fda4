"""Settings from options, the environment and a file; what is wrong is told with its place."""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch

from loramux_client import cli
from loramux_server.access import Scope, read_access
from loramux_server.errors import BadSetting
from loramux_server.flags import Flags
from loramux_server.settings import Settings, load, origin
from loramux_store import Store


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LORAMUX_")]:
        monkeypatch.delenv(name)


def file_of(folder: Path, text: str) -> Path:
    made = folder / "loramux.toml"
    made.write_text(text)
    return made


def test_options_go_before_the_environment_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_of(tmp_path, 'port = 1\nmax_queue = 2\nmax_side = 256\nbase = "other"\n')
    monkeypatch.setenv("LORAMUX_PORT", "3")
    monkeypatch.setenv("LORAMUX_MAX_QUEUE", "4")
    monkeypatch.setenv("LORAMUX_THREADS", "")  # as if it were not set
    given = {"config": str(file), "port": "5"}
    settings = load(**given)
    assert (settings.port, settings.max_queue, settings.max_side, settings.threads) == (5, 4, 256, None)
    origins = [origin(name, given, settings) for name in ("port", "max_queue", "max_side", "threads")]
    assert origins == ["--port", "LORAMUX_MAX_QUEUE", f"max_side in {file}", "default"]
    monkeypatch.setenv("LORAMUX_CONFIG", str(file))
    assert load().base == "other" and load().port == 3


def test_every_setting_is_an_option_with_what_it_means() -> None:
    assert list(Flags.model_fields) == list(Settings.model_fields)
    assert all(field.description for field in Flags.model_fields.values())


@pytest.mark.parametrize(
    ("text", "environment", "given", "told"),
    [
        ("prot = 3", {}, {}, "prot in FILE is no setting; did you mean port?"),
        ("xyzzy = 3", {}, {}, "xyzzy in FILE is no setting, expected one of base, store"),
        ("config = 'x'", {}, {}, "config in FILE is no setting"),
        ("port = ", {}, {}, "config: FILE cannot be read as TOML"),
        ("port = 'x'", {}, {}, "port in FILE: is 'x'"),
        ("", {"LORAMUX_PRT": "3"}, {}, "LORAMUX_PRT in the environment is no setting; did you mean LORAMUX_PORT?"),
        ("", {"LORAMUX_PORT": "70000"}, {}, "LORAMUX_PORT: is '70000'"),
        ("", {}, {"max_rows": "1"}, "--max-rows: is '1'"),
        ("", {}, {"deterministic_rank": "17"}, "--deterministic-rank: is 17;"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, environment: dict[str, str], given: dict, told: str
) -> None:
    file = file_of(tmp_path, text)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadSetting) as caught:
        load(config=str(file), **given)
    assert told.replace("FILE", str(file)) in str(caught.value)


def test_all_that_is_wrong_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--port", "x", "--max-rows", "1", "--kernels", "none"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["--port", "--kernels", "--max-rows"]


def test_choices_among_numbers_are_read_from_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMUX_DETERMINISTIC_RANK", "32")
    assert load().deterministic_rank == 32


def test_the_clients_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMUX_SERVER", "h:1")
    monkeypatch.setenv("LORAMUX_TOKEN", "x")
    assert load().port == 50051


def test_show_tells_each_value_and_where_it_is_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = file_of(tmp_path, "max_queue = 7")
    assert cli.main(["config", "show", "--config", str(file), "--port", "1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown) == list(Settings.model_fields)
    assert shown["max_queue"] == {"value": 7, "from": f"max_queue in {file}"}
    assert shown["port"] == {"value": 1, "from": "--port"} and shown["threads"]["from"] == "default"
    assert cli.main(["config", "show"]) == 0
    assert "50051" in capsys.readouterr().out


def test_check_opens_what_the_settings_name(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    tmp_path = tmp_path_factory.mktemp("checked")
    store = tmp_path / "far" / "away"
    monkeypatch.setenv("LORAMUX_STORE", str(store))
    assert cli.main(["config", "check"]) == 0
    assert capsys.readouterr().out == "all is well\n" and not list(tmp_path.iterdir())
    tokens = tmp_path / "tokens.toml"
    tokens.write_text("[x]\nsha256 = 'short'\nscopes = []\n")
    for options, told in (
        (["--tokens", str(tokens)], "x.sha256"),
        (["--tokens", str(tmp_path / "none")], "cannot be read"),
        (["--tls-cert", "x.pem"], "expected both"),
        (["--host", "0.0.0.0"], "--insecure"),
        (["--port", "x"], "--port"),
        (["--host", "192.0.2.7", "--insecure"], "host: 192.0.2.7 is no address that this machine can listen on"),
        (["--metrics-host", "192.0.2.7"], "metrics_host: 192.0.2.7 is no address"),
        (["--base", "/nope"], "base /nope is no folder and no file"),
        (["--base", str(tmp_path)], "model_index.json"),
        (["--base", str(tokens)], "is no .safetensors file"),
        (["--store", "/proc/nope"], "store: /proc/nope: "),
        (["--device", "cuda"], "device is 'cuda'"),
        (["--kernels", "triton", "--device", "cpu"], "kernels is 'triton'"),
    ):
        assert cli.main(["config", "check", *options]) == 2, options
        assert told in capsys.readouterr().err
    assert not store.exists()


def test_check_tells_all_that_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "check", "--base", "/nope", "--store", "/proc/nope", "--host", "0.0.0.0"]) == 2
    starts = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert starts == ["host", "base /nope is no folder and no file, and no hub id (owner/name)", "store"]


def test_check_looks_at_a_store_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = ["config", "check", "--store", str(tmp_path)]
    Store.open(tmp_path).close()
    before = sorted(tmp_path.iterdir())
    assert cli.main(check) == 0 and sorted(tmp_path.iterdir()) == before
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite3", isolation_level=None)) as catalog:
        catalog.execute("UPDATE alembic_version SET version_num = 'future'")
    assert cli.main(check) == 2
    assert "future" in capsys.readouterr().err
    (tmp_path / "catalog.sqlite3").write_bytes(b"no catalog at all" * 100)
    assert cli.main(check) == 2
    assert f"store: {tmp_path}: " in capsys.readouterr().err


def test_a_token_is_printed_once_and_only_its_digest_goes_into_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["config", "token", "gallery", "--scope", "generate", "--scope", "adapters.read"]) == 0
    out, err = capsys.readouterr()
    file = tmp_path / "tokens.toml"
    file.write_text(err)
    assert out.strip() not in err and len(out.strip()) > 40
    holder = read_access(file).admit(
        "/loramux.v1.GenerationService/Generate", [("authorization", f"Bearer {out.strip()}")]
    )
    assert holder.name == "gallery" and holder.scopes == {Scope.GENERATE, Scope.ADAPTERS_READ}
    assert cli.main(["config", "token", "no name", "--scope", "admin"]) == 2
    assert cli.main(["config", "token", "x", "--scope", "everything"]) == 2
