"""The wheel holds the packages, all of them, and nothing else."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = [ROOT / source for source in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.iterdir()
    return zipfile.ZipFile(path)


def _info(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def _metadata(wheel: zipfile.ZipFile) -> Message:
    return Parser().parsestr(_info(wheel, "METADATA"))


def test_it_holds_the_packages_whole(wheel: zipfile.ZipFile) -> None:
    expected = {
        path.relative_to(source.parent).as_posix()
        for source in SOURCES
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == expected


def test_it_brings_the_licence(wheel: zipfile.ZipFile) -> None:
    assert _metadata(wheel)["License-Expression"] == "Apache-2.0"
    for name in ("LICENSE", "NOTICE"):
        assert _info(wheel, f"licenses/{name}") == (ROOT / name).read_text()


def test_plain_install_needs_no_torch(wheel: zipfile.ZipFile) -> None:
    required = _metadata(wheel).get_all("Requires-Dist") or []
    plain = {re.split(r"[^\w.-]", text)[0] for text in required if "extra ==" not in text}
    assert "grpcio" in plain
    assert plain.isdisjoint({"torch", "triton", "diffusers", "transformers", "numpy", "pillow", "safetensors"})


def test_commands_point_at_something(wheel: zipfile.ZipFile) -> None:
    points = configparser.ConfigParser()
    points.read_string(_info(wheel, "entry_points.txt"))
    assert dict(points["console_scripts"]) == {"loramux": "loramux_client.cli:main"}
    assert set(points["loramux.commands"]) >= {"serve", "demo"}


@pytest.mark.parametrize("name", PROJECT["project"]["entry-points"]["loramux.commands"])
def test_installed_commands_load(name: str) -> None:
    (point,) = entry_points(group="loramux.commands", name=name)
    assert callable(point.load())


def test_every_requirement_is_pinned() -> None:
    pins = {
        re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if re.fullmatch(r"[\w.-]+==[\w.+!-]+", line)
    }
    project = PROJECT["project"]
    groups = PROJECT["dependency-groups"]
    required = [*project["dependencies"], *groups["dev"], *groups["fuzz"], "pip"]
    required += [text for texts in project["optional-dependencies"].values() for text in texts]
    names = {re.split(r"[^\w.-]", text)[0].lower().replace("_", "-") for text in required} - {"loramux"}
    assert names - pins == set()
