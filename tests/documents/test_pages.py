"""Pages lead where they say, none is lost, and the reference is that of the schema."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pages import PAGES, ROOT, anchors, links, name

from loramux_server.access import NEEDED

API = ROOT / "docs/api.md"
GENERATOR = ROOT / "docs/generator"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        to = urlsplit(link)
        if to.scheme:
            assert to.scheme == "https" and "." in to.netloc, link
            continue
        target = (page.parent / unquote(to.path)).resolve() if to.path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not to.fragment or to.fragment in anchors(target), link


def test_the_index_has_every_page_and_the_readme_leads_to_it() -> None:
    index = ROOT / "docs/README.md"
    listed = {(index.parent / link).resolve() for link in links(index)}
    pages = set((ROOT / "docs").glob("*.md")) - {index}
    assert pages - listed == set()
    assert "docs/README.md" in links(ROOT / "README.md")


def test_upgrade_notes_know_of_what_is_deprecated() -> None:
    marked = [file for file in (ROOT / "proto").rglob("*.proto") if "deprecated" in file.read_text()]
    assert ("Nothing is deprecated now." in (ROOT / "docs/upgrading.md").read_text()) == (marked == [])


def test_anchors_are_as_github_spells_them(tmp_path: Path) -> None:
    page = tmp_path / "p.md"
    page.write_text("# Who *does* `what_it` is?\n## A, b - c\n## A, b - c\n```\n# code\n```\n")
    assert anchors(page) == {"who-does-what_it-is", "a-b---c", "a-b---c-1"}


# the reference


def make_api(page: Path) -> subprocess.CompletedProcess[str]:
    make = ["make", "api", f"API={page}", "INSTALLED=", f"PY={sys.executable}"]
    return subprocess.run(make, cwd=ROOT, capture_output=True, text=True)


def test_the_reference_is_that_of_the_schema(tmp_path: Path) -> None:
    page = tmp_path / "api.md"
    page.write_text(re.sub(r"(?<=<!-- api -->\n).*(?=<!-- /api -->)", "", API.read_text(), flags=re.S))
    made = make_api(page)
    assert made.returncode == 0, made.stderr
    assert page.read_text() == API.read_text(), "run `make api`"


def test_the_reference_names_every_call_reason_and_scope() -> None:
    text = API.read_text()
    reasons = re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs/errors.md").read_text(), re.M)
    assert len(reasons) > 20 and [reason for reason in reasons if f"`{reason}`" not in text] == []
    for method, scope in NEEDED.items():
        row = rf"^\| \[{method.rpartition('/')[2]}\]\(.*\| {f'`{scope.value}`' if scope else 'any token'} \|$"
        assert len(re.findall(row, text, re.M)) == 1, method


@pytest.mark.parametrize(
    ("comment", "said"),
    [
        ("  // Name of the adapter.\n  string adapter = 1;", "AdapterVersion.adapter in loramux/v1/adapter.proto"),
        ("// What an adapter is made of.\nenum", "AdapterKind in loramux/v1/adapter.proto"),
        ("  // In the server's memory too.\n", "Tier.TIER_HOST in loramux/v1/adapter.proto"),
    ],
)
def test_what_has_no_comment_is_named(tmp_path: Path, comment: str, said: str) -> None:
    shutil.copytree(ROOT / "proto", tmp_path / "proto", ignore=shutil.ignore_patterns("*.py*"))
    schema = tmp_path / "proto/loramux/v1/adapter.proto"
    whole = schema.read_text()
    assert comment in whole
    without = "\n".join(line for line in comment.splitlines() if "//" not in line)
    schema.write_text(whole.replace(comment, without, 1))
    program = "import sys, pathlib, schema; schema.read(pathlib.Path(sys.argv[1]))"
    asked = [sys.executable, "-c", program, str(tmp_path / "proto")]
    done = subprocess.run(asked, cwd=GENERATOR, capture_output=True, text=True)
    assert done.returncode != 0 and f"{said} has no comment" in done.stderr
