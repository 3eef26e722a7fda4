"""Makes this folder's builders importable (`import adapter_files`) and opens stores for tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import adapter_files

from loramux_store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store that knows the toy layouts."""
    with Store.open(tmp_path / "store") as opened:
        for layout in adapter_files.TOYS:
            opened.register_layout(layout)
        yield opened
