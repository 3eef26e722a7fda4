"""What the documents and the layout promise is true of the code."""

from __future__ import annotations

import ast
import filecmp
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "client": "loramux_client",
    "server": "loramux_server",
    "kernels": "loramux_kernels",
    "adapters_store": "loramux_store",
    "training": "loramux_train",
}
ROOMS = ("proto", *PACKAGES)
DOCUMENTS = sorted(path for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md") for path in ROOT.glob(pattern))
READS_THE_ENVIRONMENT = {"client/loramux_client/settings.py", "server/loramux_server/settings.py"}
LARGEST_FILE = 16 << 20  # bytes


def _sources() -> list[Path]:
    paths = (path for room, package in PACKAGES.items() for path in (ROOT / room / package).rglob("*.py"))
    return sorted(paths)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _code(document: Path) -> str:
    """Everything a document shows as code, one span or line to a line, without the shell's comments."""
    text = document.read_text()
    fences: list[str] = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    spans: list[str] = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return re.sub(r"(^|\s)#.*", "", "\n".join(fences + spans), flags=re.M)


def _shown(start: str) -> list[list[str]]:
    """Every command in the documents that starts with a word, as arguments, once."""
    lines = {line.strip() for document in DOCUMENTS for line in _code(document).splitlines()}
    return sorted(shlex.split(line) for line in lines if re.match(rf"{start}\s+\S", line))


# layout


def test_imports_follow_the_contracts() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_no_package(room: str) -> None:
    assert not (ROOT / room / "__init__.py").exists()


@pytest.mark.parametrize("room", PACKAGES)
def test_a_room_holds_one_typed_package(room: str) -> None:
    held = {path.parent.name for path in (ROOT / room).glob("*/__init__.py")}
    assert held == {PACKAGES[room]}
    assert (ROOT / room / PACKAGES[room] / "py.typed").is_file()


@pytest.mark.parametrize("module", ["loramux_client", "loramux_client.cli", "loramux_store", "loramux_store.header"])
def test_imports_without_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or f"{module} imports torch or numpy"


def _has_public_names(path: Path) -> bool:
    return re.search(r"^__all__\b", path.read_text(), re.M) is not None


@pytest.mark.parametrize("path", [path for path in _sources() if _has_public_names(path)], ids=_name)
def test_public_names_resolve(path: Path) -> None:
    module = importlib.import_module(_module(path))
    public: list[str] = module.__all__
    assert len(set(public)) == len(public)
    assert [name for name in public if not hasattr(module, name)] == []


def _reads_environment(tree: ast.AST) -> bool:
    names = {"environ", "environb", "getenv"}
    return any(
        (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and names & {name.name for name in node.names})
        for node in ast.walk(tree)
    )


def test_the_environment_is_read_in_one_file() -> None:
    readers = {_name(path) for path in _sources() if _reads_environment(ast.parse(path.read_text()))}
    assert readers <= READS_THE_ENVIRONMENT


def test_every_module_says_what_it_is() -> None:
    silent = [
        _name(path) for path in _sources() if path.read_text() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_no_large_files() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    paths = [ROOT / name for name in listed.split("\0") if name]
    assert [_name(path) for path in paths if path.is_file() and path.stat().st_size > LARGEST_FILE] == []


# schema


def test_stubs_are_fresh(tmp_path: Path) -> None:
    make = ["make", "proto", f"PROTO_OUT={tmp_path}", "INSTALLED=", f"PY={sys.executable}"]
    subprocess.run(make, cwd=ROOT, check=True, capture_output=True)
    fresh, committed = tmp_path / "loramux" / "v1", ROOT / "proto" / "loramux" / "v1"
    names = {path.name for path in fresh.iterdir()}
    assert {path.name for path in committed.glob("*_pb2*.py*")} == names, "run `make proto`"
    _, changed, unread = filecmp.cmpfiles(fresh, committed, names, shallow=False)
    assert changed + unread == [], "run `make proto`"


# documents


def test_the_readme_lists_every_room() -> None:
    listed = set(re.findall(r"^(\w+)/ ", (ROOT / "README.md").read_text(), re.M))
    assert listed == {*ROOMS, "benchmarks", "deploy", "tests"}


def test_make_targets_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):(?!=)", (ROOT / "Makefile").read_text(), re.M))
    called = {words[1] for words in _shown("make") if "=" not in words[1]}
    assert called
    assert called - targets == set()


def test_metrics_in_documents_exist() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "server" / "loramux_server").rglob("*.py"))
    modules = {path.stem for path in _sources()} | set(PACKAGES.values())
    named = {
        name
        for document in DOCUMENTS
        for name in re.findall(r"\bloramux_(\w+)", _code(document))
        if f"loramux_{name}" not in modules
    }
    assert [name for name in sorted(named) if f'"{name}"' not in code and f'"loramux_{name}"' not in code] == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_ci_is_a_script_that_bash_can_read() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
