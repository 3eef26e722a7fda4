"""`loramux adapters ...`: the shelf from the command line.

Takes: names and files. Gives: tables, reports, JSON. Does not know how the server is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter, Token
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn

from loramux_client import shelf, terminal
from loramux_client.commands.adapter_tables import (
    ADAPTER_COLUMNS,
    VERSION_COLUMNS,
    adapter_row,
    extent,
    facts,
    say_beside,
    version_row,
)
from loramux_client.commands.installed import shelf_tools
from loramux_client.commands.server import Json, Server, connect
from loramux_client.errors import InvalidArgument
from loramux_client.sidecars import read_sidecars

SHOWN_IGNORED = 5
"""Ignored keys that a push lists one by one; a file of another trainer can have hundreds."""

FILTER_HELP = (
    "Terms that must all hold: layout=NAME, kind=lora or kind=embedding, labels.KEY=VALUE, labels.KEY, or words that "
    "stand in name, description or trigger words."
)

adapters = App(name="adapters", help="Put adapters on the shelf, look at them, take them off.")

for _tool in shelf_tools():
    adapters.command(_tool)

Name = Annotated[str, Parameter(help="Name of the adapter.")]
File = Annotated[Path, Parameter(help="A safetensors file.")]
Layout = Annotated[str | None, Parameter(help="Layout it is for; only needed where shapes fit several.")]
AdapterConfig = Annotated[Path | None, Parameter(help="The adapter_config.json that belongs to it.")]
Alpha = Annotated[float | None, Parameter(help="Alpha of modules for which the file gives none.")]
Trigger = Annotated[
    str | None,
    Parameter(help="What stands for an embedding in prompts. Default: the token the file names, else the name."),
]


Licence = Annotated[str | None, Parameter(help="Licence. Default: what the file says.")]
BaseModel = Annotated[str | None, Parameter(help="What base it was made with. Default: what the file says.")]


def _labels(_: type[Any], tokens: Sequence[Token]) -> list[tuple[str, str]]:
    return [_label(token.value) for token in tokens]


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"label {text!r} is not KEY=VALUE")
    return key, value


Labels = Annotated[
    list[tuple[str, str]] | None,
    Parameter(
        name="--label",
        converter=_labels,
        n_tokens=1,
        accepts_keys=False,
        negative="",
        metavar="KEY=VALUE",
        help="A note; repeatable.",
    ),
]
Words = Annotated[
    list[str] | None, Parameter(name="--trigger-word", negative="", help="A word that brings it out; repeatable.")
]


@adapters.command
def push(
    file: File,
    /,
    *,
    name: Annotated[str | None, Parameter(help="Default: the file's name, made valid.")] = None,
    default_weight: float | None = None,
    trigger_word: Words = None,
    label: Labels = None,
    description: str | None = None,
    licence: Licence = None,
    base_model: BaseModel = None,
    layout: Layout = None,
    adapter_config: AdapterConfig = None,
    alpha: Alpha = None,
    trigger: Trigger = None,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Only ask whether the server would take it, and what it would make of it.")
    ] = False,
    server: Server = None,
) -> None:
    """Upload a file as a new version of an adapter.

    After a break the same command goes on where it was. Trigger words, default weight, description and base model that
    are not given are looked for beside the file: in NAME.civitai.info, NAME.json, and the README.md of a folder with
    one adapter.
    """
    beside = read_sidecars(file)
    said = _said(
        default_weight=default_weight,
        trigger_words=trigger_word,
        labels=None if label is None else dict(label),
        description=description,
        licence=licence,
        base_model=base_model,
        layout=layout,
        peft_config=None if adapter_config is None else adapter_config.read_text("utf-8"),
        alpha=alpha,
        trigger=trigger,
        validate_only=dry_run or None,
    )
    options = shelf.UploadOptions(**{**beside.said, **said})  # pyright: ignore[reportArgumentType]
    if dry_run:
        uploaded = _upload(server, file, name or _would_be_name(file), options)
        terminal.say(f"{file} would be accepted")
        _say_report(uploaded.report, whole=True)
        say_beside(beside, said)
        return
    uploaded = _upload(server, file, name, options)
    if (version := uploaded.version) is not None:
        news = "pushed" if uploaded.created else "already there:"
        digest = terminal.short(version.digest)
        terminal.say(f"{news} {version.adapter}@{version.number} ({digest})")
    _say_report(uploaded.report)
    say_beside(beside, said)


@adapters.command(name="list")
def list_(
    *,
    filter: Annotated[str, Parameter(help=FILTER_HELP)] = "",
    order: Annotated[str, Parameter(help="name, create_time or update_time; with ' desc' the other way round.")] = "",
    deleted: Annotated[bool, Parameter(negative="", help="Also those that were removed.")] = False,
    server: Server = None,
    json: Json = False,
) -> None:
    """List adapters."""
    with connect(server) as client:
        found = list(client.list_adapters(filter=filter, order_by=order, deleted=deleted))
    if json:
        terminal.say_json(found)
        return
    terminal.say_table(ADAPTER_COLUMNS, map(adapter_row, found))


@adapters.command
def show(
    name: Annotated[str, Parameter(help="An adapter, as NAME, NAME@VERSION or NAME@ALIAS.")],
    /,
    *,
    server: Server = None,
    json: Json = False,
) -> None:
    """Show one adapter and its versions."""
    with connect(server) as client:
        found = client.get_adapter(name)
        asked = found.asked_version
        versions = [asked] if asked else list(client.list_versions(name))
    if json:
        terminal.say_json({"adapter": found, "versions": versions})
        return
    terminal.say(f"{found.name}: {found.description}" if found.description else found.name)
    for fact, text in facts(found):
        terminal.say(f"{fact:<16}{text or '-'}")
    terminal.say_table(VERSION_COLUMNS, map(version_row, versions))


@adapters.command
def pull(
    adapter: Annotated[str, Parameter(help="An adapter, as NAME, NAME@VERSION or NAME@ALIAS.")],
    /,
    *,
    out: Annotated[
        Path | None, Parameter(name=["--out", "-o"], help="File to write. Default: NAME.safetensors here.")
    ] = None,
    server: Server = None,
) -> None:
    """Download the exact file that was uploaded. Nothing is written unless all of it came and its sha256 is right."""
    path = Path(f"{adapter.partition('@')[0]}.safetensors") if out is None else out
    with connect(server) as client, _bar(path) as progress:
        version = client.download(adapter, path, progress=progress)
    terminal.say(f"pulled {version.adapter}@{version.number} ({terminal.short(version.digest)}) to {path}")


@adapters.command
def rm(name: Name, /, *, server: Server = None) -> None:
    """Take an adapter off the shelf. Pictures being drawn keep it; `undelete` puts it back."""
    with connect(server) as client:
        client.delete_adapter(name)
    terminal.say(f"removed {name}")


def _said(**said: Any) -> dict[str, Any]:
    return {name: value for name, value in said.items() if value is not None}


def _upload(server: str | None, file: Path, name: str | None, options: shelf.UploadOptions) -> shelf.Upload:
    with connect(server) as client, _bar(file) as progress:
        return client.upload(file, name, progress=progress, **options)


def _would_be_name(file: Path) -> str:
    """The name that a push would give it, which may be an embedding's trigger; any, where it would give none."""
    try:
        return shelf.name_of(file)
    except InvalidArgument:
        return "check"


@contextmanager
def _bar(file: Path) -> Generator[shelf.Progress]:
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with terminal.progress(*columns) as bars:
        task = bars.add_task(terminal.plain(file.name), total=None)
        yield lambda so_far, total: bars.update(task, completed=so_far, total=total)


def _say_report(report: shelf.AcceptReport, *, whole: bool = False) -> None:
    terminal.say(f"  {report.family}, layout {report.layout or 'unknown'}")
    terminal.say(f"  {_reach(report)}")
    for how, count in sorted(Counter(map(_how, report.matched)).items()):
        terminal.say(f"  {how}: {count}")
    for embedding in report.bundled:
        terminal.say(f"  {_told(embedding)}; bundled with it")
    for evidence in report.evidence if whole else report.evidence[:1]:
        terminal.say(f"  because {evidence}")
    shown = report.ignored if whole else report.ignored[:SHOWN_IGNORED]
    for key in shown:
        terminal.say(f"  ignored {key.key}: {key.reason}")
    if more := len(report.ignored) - len(shown):
        terminal.say(f"  ignored {more} more tensors")
    for warning in report.warnings:
        terminal.complain(f"  warning: {warning}")


def _reach(report: shelf.AcceptReport) -> str:
    """What it acts on."""
    if report.embedding is not None:
        return _told(report.embedding)
    ranks = sorted({module.rank for module in report.matched if module.rank})
    span = f"{ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else "".join(map(str, ranks))
    return f"acts on {len(report.matched)} modules, rank {span or '-'}"


def _told(embedding: shelf.Embedding) -> str:
    widths = ", ".join(f"{width} in {encoder}" for encoder, width in embedding.widths.items())
    return f"embedding of {extent(embedding.vectors)}, width {widths}; acts where {embedding.trigger!r} stands"


def _how(module: shelf.MatchedModule) -> str:
    """Such as `lora as rows`, or `lokr as kronecker, decomposed by output`."""
    axis = f", decomposed by {module.axis}" if module.axis else ""
    return f"{module.algorithm} as {module.operation}{axis}"
