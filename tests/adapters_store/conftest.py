"""Makes this folder's builders importable (`import adapter_files`) and opens stores for tests."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import adapter_files

from loramux_store import Store


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed one that knows the toy layouts, to copy: making one takes longer than many a test."""
    folder = tmp_path_factory.mktemp("empty") / "store"
    with Store.open(folder) as opened:
        for layout in adapter_files.TOYS:
            opened.register_layout(layout)
    return folder


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Iterator[Store]:
    """An empty store that knows the toy layouts."""
    shutil.copytree(empty_store, tmp_path / "store")
    with Store.open(tmp_path / "store") as opened:
        yield opened
