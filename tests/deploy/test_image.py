"""The Dockerfile and what it installs with. No image is built: a daemon is not to be had everywhere."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import dockerfile
import pytest

from loramux_client import cli
from loramux_server.settings import PREFIX, Settings

ROOT = dockerfile.ROOT
TARGETS = dockerfile.TARGETS
INSTALL = ROOT / "deploy" / "image" / "install.sh"
PYTHON = f"""#!/bin/sh
# Says how it was called, and makes a venv in which pip is the same.
echo "$0 $*" >> "$CALLS"
if [ "$2" = venv ]; then
  mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; ln -s {shutil.which("true")} "$3/bin/cyclonedx-py"
fi
for word in "$@"; do case $word in */pins.txt) cp "$word" "$PINS";; esac; done
"""


@pytest.mark.parametrize("target", TARGETS)
def test_a_server_runs_as_nobody_special_is_asked_after_and_told_to_stop(target: str) -> None:
    assert dockerfile.last(target, "USER") == "10001:10001"
    assert dockerfile.image(target)[-1].word == "USER", "nothing is done as root after it"
    assert json.loads(dockerfile.last(target, "ENTRYPOINT")) == ["loramux"]
    assert json.loads(dockerfile.last(target, "CMD")) == ["serve"]
    assert dockerfile.last(target, "STOPSIGNAL") == "SIGTERM"


@pytest.mark.parametrize("target", TARGETS)
def test_the_health_check_is_a_command_that_asks_the_port(
    target: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, command = dockerfile.last(target, "HEALTHCHECK").split(" CMD ")
    assert "--start-period=" in options
    program, *words = json.loads(command)
    assert program == "loramux" and words[-1] == f"127.0.0.1:{Settings().metrics_port}"
    assert cli.main([*words[:-1], "127.0.0.1:1"]) == 1
    assert "not serving: 127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize("target", TARGETS)
def test_settings_exist_and_what_is_written_is_on_volumes(target: str) -> None:
    environment = dockerfile.pairs(target, "ENV")
    own = {name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX)}
    made = Settings.model_validate(own)
    volumes = dockerfile.volumes(target)
    assert str(made.store) in volumes
    caches = [value for name, value in environment.items() if "CACHE" in name]
    assert len(caches) == 2 and {str(Path(path).parent) for path in caches} <= volumes
    ports = {str(made.port), str(made.metrics_port)}
    assert set(dockerfile.last(target, "EXPOSE").split()) == ports


@pytest.mark.parametrize("target", TARGETS)
def test_labels_say_what_is_in_the_image(target: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = dockerfile.pairs(target, "LABEL")
    assert labels["org.opencontainers.image.version"] == project["version"]
    assert labels["org.opencontainers.image.licenses"] == project["license"]
    (copied,) = (each.rest for each in dockerfile.image(target) if each.word == "COPY")
    assert copied == f"--from=installed-{target} /opt/loramux /opt/loramux"
    assert labels["loramux.sbom"] == "/opt/loramux/sbom.cdx.json"
    assert re.search(r'"\$folder/sbom\.cdx\.json"$', INSTALL.read_text(), re.M)


@pytest.mark.parametrize(("target", "extra"), [("cpu", "server"), ("cuda", "cuda")])
def test_what_is_installed_has_the_extra_of_its_machine(target: str, extra: str) -> None:
    stages = dockerfile.stages((ROOT / "Dockerfile").read_text())
    (run,) = (each.rest for each in stages[f"installed-{target}"] if each.word == "RUN")
    assert f"./install.sh /opt/loramux /wheel/*.whl {extra} " in run
    assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_both_stand_on_one_python_that_is_pinned_and_supported() -> None:
    text = (ROOT / "Dockerfile").read_text()
    base = re.search(r"^ARG BASE=python:(3\.\d+)\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?$", text, re.M)
    assert base and f"Programming Language :: Python :: {base[1]}" in (ROOT / "pyproject.toml").read_text()
    stages = dockerfile.stages(text)
    below = {name: instructions[0].rest.split()[0] for name, instructions in stages.items()}
    assert set(below.values()) <= {"${BASE}", *stages}
    assert not re.search(r"latest|apt-get install(?! --yes --no-install-recommends (\"[\w.-]+=[\w:.*-]+\" )+)", text)


def test_only_the_image_for_gpus_has_what_triton_compiles_with() -> None:
    """triton/runtime/build.py looks for gcc; driver.c includes headers of the C library and of Python."""
    cpu, cuda = (" ".join(each.rest for each in dockerfile.image(target)) for target in TARGETS)
    assert "apt-get" not in cpu and "NVIDIA" not in cpu
    assert '"gcc=' in cuda and '"libc6-dev=' in cuda
    assert dockerfile.pairs("cuda", "ENV")["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"


def left_out(name: str, patterns: list[str]) -> bool:
    """Whether the last pattern that matches the name or a folder above it leaves it out, as builders read them."""
    answer = False
    for pattern in patterns:
        text = re.escape(pattern.removeprefix("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(f"{text}(?:/.*)?", name):
            answer = not pattern.startswith("!")
    return answer


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a builder is sent: the tree, less what .dockerignore leaves out."""
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    folder = tmp_path_factory.mktemp("context")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if not left_out(name, patterns) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def test_the_context_has_what_is_copied_and_no_more_than_it_needs(context: Path) -> None:
    text = (ROOT / "Dockerfile").read_text()
    copied = [each.rest.split() for each in dockerfile.read(text) if each.word == "COPY" and "--from" not in each.rest]
    assert [words for words in copied if words != [".", "."]], "COPY names files"
    assert [name for *names, _ in copied for name in names if not (context / name).exists()] == []
    assert {file.name for file in context.iterdir()}.isdisjoint({"tests", "docs", "benchmarks", ".git", "out"})
    assert [file.name for file in (context / "deploy").iterdir()] == ["image"]
    assert left_out("proto/loramux/__pycache__/x.pyc", (ROOT / ".dockerignore").read_text().splitlines())


def test_the_context_makes_the_wheel_of_the_checkout(context: Path, tmp_path: Path) -> None:
    names: list[list[str]] = []
    for place in (ROOT, context):
        build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
        subprocess.run(build, cwd=place, check=True, capture_output=True)
        (path,) = tmp_path.iterdir()
        names.append(sorted(zipfile.ZipFile(path).namelist()))
        path.unlink()
    assert names[0] == names[1] and "loramux_server/app.py" in names[0]


def install(folder: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """What install.sh calls with Python, less paths, and the pins that pip is given at the end."""
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    environment = {
        **os.environ,
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "CALLS": str(folder / "calls"),
        "PINS": str(folder / "pins"),
    }
    command = ["bash", str(INSTALL), str(folder / "made"), "x.whl", *arguments]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    calls = [re.sub(r"\S*/(?=\w)", "", line) for line in (folder / "calls").read_text().splitlines()]
    pins = dict(line.split("==") for line in (folder / "pins").read_text().splitlines() if "==" in line)
    return calls, pins


@pytest.mark.parametrize("extra", ["server", "cuda"])
def test_torch_is_installed_alone_and_first_and_then_the_wheel(tmp_path: Path, extra: str) -> None:
    calls, pins = install(tmp_path, extra)
    pinned = pins["torch"]
    assert calls == [
        "python -m venv made",
        "python -m pip install --constraint pins.txt pip",
        f"python -m pip install --constraint pins.txt --no-deps torch=={pinned}",
        f"python -m pip install --constraint pins.txt x.whl[{extra},otel]",
        "python -m pip check",
        "python -m venv tools",
        "python -m pip install --constraint pins.txt cyclonedx-bom",
    ]
    assert pins.keys() > {"triton", "cuda-bindings"}


def test_another_torch_comes_from_its_index_with_its_own_triton_and_cuda(tmp_path: Path) -> None:
    calls, pins = install(tmp_path, "cuda", "2.12.0", "URL")
    assert calls[2] == "python -m pip install --constraint pins.txt --no-deps --index-url URL torch==2.12.0"
    assert pins["torch"] == "2.12.0" and {"triton", "cuda-bindings"}.isdisjoint(pins) and "diffusers" in pins
