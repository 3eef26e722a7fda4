"""The page of faults that users of other trainers report names tests that run."""

import re
from pathlib import Path

from named_tests import missing

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/training-faults.md").read_text()


def test_every_fault_has_a_thread_an_answer_and_tests_that_run() -> None:
    rows: list[tuple[str, ...]] = re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \| (.+) \| (.+) \|$", PAGE, re.M)
    assert len(rows) == len(re.findall(r"^\| \*\*", PAGE, re.M)) == 21
    for fault, seen, answer, tests in rows:
        assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", thread) for thread in seen.split(", ")), fault
        assert len(answer) > 20 and re.findall(r"`tests/[\w/]+\.py::test_\w+`", tests), fault
    assert missing(PAGE, ROOT) == []
