"""The examples of clients draw a picture on a real server, and tell refusals in a line."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from google.protobuf.message import Message

from loramux.v1 import adapter_service_pb2, generation_pb2, generation_service_pb2

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "client" / "examples"
PNG = b"\x89PNG"
GO = ("go", "protoc-gen-go", "protoc-gen-go-grpc")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = tmp_path_factory.mktemp("store")
    command = [sys.executable, "-m", "loramux_client.cli", "serve", "--port", "0", "--metrics-port", "0"]
    with subprocess.Popen([*command, "--store", str(store)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split("grpc=")[1].split()[0]
        process.terminate()


def run(command: list[str], target: str, folder: Path) -> str:
    """What it says; it must end well."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "LORAMUX_SERVER": target, "PATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_python(target: str, tmp_path: Path) -> None:
    said = run([sys.executable, str(EXAMPLES / "python" / "generate.py"), "a red apple", "apple.png"], target, tmp_path)
    assert "ink" in said and "step 8 of 8" in said
    assert (tmp_path / "apple.png").read_bytes().startswith(PNG)


def test_shell(target: str, tmp_path: Path) -> None:
    said = run([str(EXAMPLES / "shell" / "generate.sh"), "a red apple", "apple.png"], target, tmp_path)
    assert "ink" in said and (tmp_path / "apple.png").read_bytes().startswith(PNG)


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node.js with npm")
def test_typescript(target: str, tmp_path: Path) -> None:
    """Stubs made, compiled and run, in a copy."""
    folder = tmp_path / "client" / "examples" / "typescript"
    shutil.copytree(EXAMPLES / "typescript", folder)
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    run(["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"], target, folder)
    run(["npm", "run", "stubs"], target, folder)
    run(["npm", "run", "build"], target, folder)
    said = run(["node", "out/generate.js", "a red apple", "apple.png"], target, folder)
    assert "ink" in said and "step 8 of 8" in said
    assert (folder / "apple.png").read_bytes().startswith(PNG)
    refused = subprocess.run(
        ["node", "out/generate.js", ""], cwd=folder, env={**os.environ, "LORAMUX_SERVER": target}, capture_output=True
    )
    assert refused.returncode == 1 and b"INVALID_ARGUMENT: prompt" in refused.stderr


@pytest.mark.skipif(None in map(shutil.which, GO), reason=f"{', '.join(GO)} are not all here: Go was NOT run")
def test_go(target: str, tmp_path: Path) -> None:
    """Stubs made, compiled and run, in a copy. Modules come from wherever GOPROXY and GOFLAGS say."""
    folder = tmp_path / "client" / "examples" / "go"
    shutil.copytree(EXAMPLES / "go", folder)
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    run(["buf", "generate", "../../../proto"], target, folder)
    run(["go", "mod", "tidy"], target, folder)
    run(["go", "build", "-o", "generate", "."], target, folder)
    said = run(["./generate", "a red apple", "apple.png"], target, folder)
    assert "ink" in said and "step 8 of 8" in said
    assert (folder / "apple.png").read_bytes().startswith(PNG)
    refused = subprocess.run(
        ["./generate", "", "apple.png"], cwd=folder, env={**os.environ, "LORAMUX_SERVER": target}, capture_output=True
    )
    assert refused.returncode == 1 and b"InvalidArgument: prompt" in refused.stderr


def test_go_names_what_the_schema_has() -> None:
    """Where there is no Go: messages, their fields in literals and in getters, and services."""
    text = (EXAMPLES / "go" / "generate.go").read_text()
    modules = (adapter_service_pb2, generation_pb2, generation_service_pb2)
    messages: dict[str, type[Message]] = {
        name: found for each in modules for name, found in vars(each).items() if isinstance(found, type)
    }
    services = {name for each in modules for name in each.DESCRIPTOR.services_by_name}
    named = set(re.findall(r"pb\.(\w+)", text))
    clients = {name.removeprefix("New").removesuffix("Client") for name in named if name.endswith("Client")}
    assert clients == services == {"AdapterService", "GenerationService"}
    assert {name for name in named if not name.endswith("Client")} - messages.keys() == set()
    literals = re.findall(r"&pb\.(\w+)\{([^}]*)\}", text)
    assert len(literals) == 4
    for name, fields in literals:
        held = messages[name].DESCRIPTOR.fields_by_name
        assert [field for field in re.findall(r"(\w+):", fields) if field.lower() not in _bare(held)] == [], name
    events = _bare(generation_pb2.GenerateEvent.DESCRIPTOR.fields_by_name)
    assert {name.lower() for name in re.findall(r"event\.Get(\w+)", text)} == {"step", "image"} & events


def _bare(names: Iterable[str]) -> set[str]:
    return {name.replace("_", "") for name in names}
