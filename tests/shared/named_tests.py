"""Tests that a page names: whether they exist, and run in the short form.

Takes a page's text and the root of the repository; gives the names that are none.
"""

import ast
import re
from pathlib import Path


def missing(page: str, root: Path) -> list[str]:
    """Names, such as `tests/room/test_x.py::test_y`, of tests that do not run."""
    named: list[tuple[str, str]] = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    return [f"{file}::{test}" for file, test in named if not runs(root / file, test)]


def runs(file: Path, test: str) -> bool:
    """Whether the file has such a test and no mark that keeps it out of the short form."""
    if not (file.is_file() and file.name.startswith("test_") and test.startswith("test_")):
        return False
    module = ast.parse(file.read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in module.body if isinstance(node, functions) and node.name == test]
    marks = [
        ast.unparse(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)
    ]
    marks += [
        ast.unparse(mark) for node in found for mark in node.decorator_list if "parametrize" not in ast.unparse(mark)
    ]
    return len(found) == 1 and not re.search(r"mark\.(long|gpu|skip|skipif|xfail)\b", " ".join(marks))
