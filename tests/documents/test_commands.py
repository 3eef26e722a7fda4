"""Every command and every Python block of the documents is run, in the order of its page, on a server that is up."""

import os
import re
import shlex
import tomllib
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from pages import PAGES, ROOT, Block, Command, blocks, commands, name, with_commands
from served import ready
from workshop import LEFT, OTHERWISE, Workshop, begins, furnish, furnish_shelf, table_entry, tidy_shelf

from loramux_client.settings import VARIABLES
from loramux_server.access import read_access
from loramux_server.settings import Settings
from loramux_train.config import fields, read

COMMANDS = [command for page in with_commands() for block in blocks(page) for command in commands(block)]
TOML = [block for page in PAGES for block in blocks(page) if block.language == "toml"]


@pytest.fixture(autouse=True, scope="module")
def bare() -> Iterator[None]:
    """Only what a page says, or the workshop."""
    with pytest.MonkeyPatch.context() as patched:
        for variable in [variable for variable in os.environ if variable.startswith("LORAMUX_")]:
            patched.delenv(variable)
        yield


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Generator[Workshop]:
    store = tmp_path_factory.mktemp("served") / "store"
    with ready(store) as at:
        made = Workshop(Path(), store, at)
        furnish_shelf(made.server)
        yield made


@pytest.mark.parametrize("page", with_commands(), ids=name)
def test_what_a_page_shows_works(
    page: Path, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Workshop(tmp_path, workshop.store, workshop.at)
    tidy_shelf(here.server)
    furnish(tmp_path, here.store)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAMUX_SERVER", here.server)
    monkeypatch.setenv("LORAMUX_STORE", str(here.store))
    for block in blocks(page):
        if block.language == "python":
            here.python(block)
        for command in commands(block):
            if table_entry(command, LEFT) is None:
                here.run(command)


def test_what_is_not_run_and_what_is_run_otherwise_has_a_reason_and_is_there() -> None:
    for table in (LEFT, OTHERWISE):
        used = {table_entry(command, table) for command in COMMANDS} - {None}
        assert used == set(table), "an entry that no command needs"
        assert all(len(reason) > 15 for reason in table.values())


# what is left


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.text.startswith("loramux") and table_entry(c, LEFT)])
def test_runs_that_are_left_have_settings_that_are_right(command: Command) -> None:
    _, train, run, file, *flags = shlex.split(command.text, comments=True)
    assert (train, run) == ("train", "run")
    assert read(ROOT / file, flags).data.folders


@pytest.mark.parametrize("command", [c for c in COMMANDS if begins(c.text, "pip")])
def test_extras_that_are_named_exist(command: Command) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [extra for extras in re.findall(r"\[([\w,]+)\]", command.text) for extra in extras.split(",")]
    assert set(named) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("command", [c for c in COMMANDS if begins(c.text, "docker run")])
def test_variables_of_containers_are_settings(command: Command) -> None:
    given = re.findall(r"-e (\w+)=", command.text)
    known = {f"LORAMUX_{field.upper()}" for field in Settings.model_fields} | set(VARIABLES)
    assert set(given) <= known


# other code


@pytest.mark.parametrize("block", TOML, ids=lambda block: f"{block.page}:{block.line}")
def test_settings_that_are_shown_exist(block: Block, tmp_path: Path) -> None:
    shown = tomllib.loads(block.text)
    file = tmp_path / "shown.toml"
    file.write_text(block.text)
    if any("sha256" in table for table in shown.values() if isinstance(table, dict)):
        assert read_access(file).holders
        return
    training = {field for field, _ in fields()}
    if not any(isinstance(value, dict) for value in shown.values()):
        shown = {"data": shown}  # a page of one section leaves out its name
    assert set(_dotted(shown, training)) <= training


def _dotted(values: dict[str, object], known: set[str], before: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and f"{before}{key}" not in known:
            yield from _dotted(value, known, f"{before}{key}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield f"{before}{key}"


def test_commands_are_found_as_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text("# Run it:\n#   docker run \\\n#     -e A=1 it        words\n# docker is needed\nservices: {}\n")
    (block,) = blocks(file)
    assert [str(command) for command in commands(block)] == ["compose.yaml:2: docker run -e A=1 it"]
    console = Block("p.md", 3, "console", "$ loramux info\nbase\n\n$ loramux adapters \\\n    list   # all\n")
    assert [(c.line, c.text) for c in commands(console)] == [
        (3, "loramux info"),
        (6, "loramux adapters list   # all"),
    ]
