"""The pages that people read, and what stands on them: links, anchors, code.

Takes files of the checkout; gives their parts. It runs nothing.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
_PLACES = ("*.md", "docs/**/*.md", "benchmarks/*.md", "client/examples/*.md", "server/loramux_server/builtin/*.md")
PAGES = sorted({path for place in _PLACES for path in ROOT.glob(place)})
_COMMENTED = ("Dockerfile", "deploy/**/*.yaml")  # files whose comments show commands, indented
_COMMAND = re.compile(r"#  +((?:loramux|make|docker|kubectl|promtool|deploy/\S+) .*)")


@dataclass(frozen=True, slots=True)
class Block:
    """Code as a page shows it. language: sh, python, toml or empty; line: of its first line, from 1."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a shell, without comment."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def name(page: Path) -> str:
    """Its path in the checkout, or else its own name."""
    return page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name


def links(page: Path) -> list[str]:
    """Where its links and pictures lead."""
    inline = [token for token in _inline(page) if token.type in ("link_open", "image")]
    return [str(token.attrs["href" if token.type == "link_open" else "src"]) for token in inline]


def spans(page: Path) -> list[str]:
    """Code within its sentences and tables."""
    return [token.content for token in _inline(page) if token.type == "code_inline"]


@cache
def anchors(page: Path) -> set[str]:
    """What may follow `#` in a link to it: its headings, as GitHub spells them."""
    seen, found = Counter[str](), set[str]()
    tokens = MarkdownIt().enable("table").parse(page.read_text("utf-8"))
    for opened, inline in pairwise(tokens):
        if opened.type == "heading_open":
            text = "".join(part.content for part in inline.children or ())
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return found


def blocks(page: Path) -> list[Block]:
    """Its code, in order; of files that are no Markdown the commands in their comments."""
    text = page.read_text("utf-8")
    if page.suffix != ".md":
        return [Block(name(page), 1, "sh", "".join(_commented(text.splitlines())))]
    fences = [token for token in MarkdownIt().parse(text) if token.type == "fence"]
    return [Block(name(page), (token.map or [0])[0] + 2, token.info, token.content) for token in fences]


def _commented(lines: list[str]) -> Iterator[str]:
    """Each line's command or the next part of one, without the words that follow at some distance; else nothing."""
    goes_on = False
    for line in lines:
        found = _COMMAND.fullmatch(line)
        shown = found[1] if found else line.lstrip("# ") if goes_on else ""
        goes_on = shown.endswith("\\")
        yield re.sub(r" {3,}.*", "", shown) + "\n"


def commands(block: Block) -> Iterator[Command]:
    """Those of a block of shell, each on one line; in a console's they follow a `$`."""
    if block.language not in ("sh", "console"):
        return
    text = re.sub(r"\\\n\s*", "\0", block.text)
    line = block.line
    for shown in text.splitlines():
        command = shown.replace("\0", "").strip()
        if block.language == "console":
            command = command.removeprefix("$ ") if command.startswith("$ ") else ""
        if command and not command.startswith("#"):
            yield Command(block.page, line, command)
        line += 1 + shown.count("\0")


def with_commands() -> list[Path]:
    """Every page and file that shows commands or Python."""
    files = {path for place in _COMMENTED for path in ROOT.glob(place)}
    return [page for page in (*PAGES, *sorted(files)) if any(_runs(block) for block in blocks(page))]


def _runs(block: Block) -> bool:
    return block.language == "python" or any(commands(block))


def _inline(page: Path) -> Iterator[Token]:
    for token in MarkdownIt().enable("table").parse(page.read_text("utf-8")):
        yield from token.children or ()
