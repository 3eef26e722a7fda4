"""Commands that are named in sentences and tables exist, with their options, and take the values that are shown."""

import re
import shlex
from contextlib import suppress
from itertools import product
from typing import Any

import pytest
from cyclopts import App, CycloptsError, MissingArgumentError
from pages import PAGES, spans

from loramux_client.cli import build_app
from loramux_client.commands import installed
from loramux_server.cli import serve
from loramux_server.errors import BadSetting
from loramux_server.flags import given
from loramux_server.settings import load

NAMED = sorted({span for page in PAGES for span in spans(page) if re.match(r"loramux (?!ready\b)", span)})
_PLACEHOLDER = re.compile(r"[A-Z]{3,}")


@pytest.fixture
def only_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that come from elsewhere are loaded, and read their words, but do nothing."""

    def parsed(self: App, tokens: Any, **_: Any) -> Any:
        return self.parse_args(tokens, exit_on_error=False, print_error=False)

    monkeypatch.setattr(App, "__call__", parsed)


def parse(words: list[str]) -> None:
    """Raises CycloptsError or BadSetting where the command line would refuse them; words may be missing at the end."""
    with suppress(MissingArgumentError):
        command, bound, _ = build_app().parse_args(words, exit_on_error=False, print_error=False)
        if command.__module__ == installed.__name__:
            command, bound, _ = command(*bound.args, **bound.kwargs)
        if command is serve:  # whose options are for the settings to judge
            load(**given(bound.arguments.get("flags")))


def spelled_out(span: str) -> list[list[str]]:
    """`config show|check` is two commands."""
    words = shlex.split(span)[1:]
    return [list(each) for each in product(*(word.split("|") for word in words))]


@pytest.mark.usefixtures("only_parsed")
@pytest.mark.parametrize("span", NAMED)
def test_it_is_one(span: str) -> None:
    for words in spelled_out(span):
        shown = words[: next((at for at, word in enumerate(words) if _PLACEHOLDER.fullmatch(word)), len(words))]
        parse(shown)


@pytest.mark.usefixtures("only_parsed")
@pytest.mark.parametrize(
    "none",
    [
        "loramux adapter list",
        "loramux adapters lst",
        "loramux adapters fsck --ful",
        "loramux bench tier",
        "loramux serve --kernels fast",
        "loramux serve --deterministik",
        "loramux config shows",
        "loramux train presetz",
        "loramux generate x --steps many",
    ],
)
def test_what_is_none_is_seen(none: str) -> None:
    with pytest.raises((BadSetting, CycloptsError)):
        parse(*spelled_out(none))
