"""`loramux adapters update`, `undelete` and `log`: what owners say of adapters, and who said it.

Takes: names and what to say. Gives: what became of it. Does not know how the server is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Any

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from loramux_client import shelf, terminal
from loramux_client.commands.adapters import Labels, Name, Words, adapters
from loramux_client.commands.server import Json, Server, connect


def _aliases(_: type[Any], tokens: Sequence[Token]) -> list[tuple[str, int]]:
    return [_alias(token.value) for token in tokens]


def _alias(text: str) -> tuple[str, int]:
    alias, equals, number = text.partition("=")
    if not alias or not equals or not number.isdecimal():
        raise ValueError(f"alias {text!r} is not WORD=VERSION")
    return alias, int(number)


Aliases = Annotated[
    list[tuple[str, int]] | None,
    Parameter(
        name="--alias",
        converter=_aliases,
        n_tokens=1,
        accepts_keys=False,
        negative="",
        metavar="WORD=VERSION",
        help="A word for a version, as in NAME@WORD; repeatable.",
    ),
]
Keys = Annotated[list[str] | None, Parameter(negative="", help="One to take away; repeatable.")]
File = "Empty: what the file says."


@adapters.command
def update(
    name: Name,
    /,
    *,
    label: Labels = None,
    remove_label: Keys = None,
    alias: Aliases = None,
    remove_alias: Keys = None,
    default_weight: Annotated[float | None, Parameter(help="Weight of uses that give none.")] = None,
    clear_default_weight: Annotated[bool, Parameter(negative="", help="Such uses weigh 1 again.")] = False,
    trigger_word: Words = None,
    clear_trigger_words: Annotated[bool, Parameter(negative="", help="The file's own count again.")] = False,
    description: str | None = None,
    licence: Annotated[str | None, Parameter(help=File)] = None,
    base_model: Annotated[str | None, Parameter(help=File)] = None,
    server: Server = None,
) -> None:
    """Change what an adapter's owner says of it; what is not given stays.

    Fails if somebody else changes the adapter at the same time.
    """
    changes = shelf.AdapterChanges()
    if default_weight is not None or clear_default_weight:
        changes["default_weight"] = default_weight
    if trigger_word or clear_trigger_words:
        changes["trigger_words"] = trigger_word or ()
    if description is not None:
        changes["description"] = description
    if licence is not None:
        changes["licence"] = licence
    if base_model is not None:
        changes["base_model"] = base_model
    with connect(server) as client:
        seen = client.get_adapter(name)
        if label or remove_label:
            changes["labels"] = _without({**seen.labels, **dict(label or ())}, remove_label)
        if alias or remove_alias:
            changes["aliases"] = _without({**seen.aliases, **dict(alias or ())}, remove_alias)
        if changes:
            client.update_adapter(name, etag=seen.etag, **changes)
    terminal.say(f"updated {name}" if changes else f"nothing to change of {name}")


@adapters.command
def undelete(name: Name, /, *, server: Server = None) -> None:
    """Put a removed adapter back on the shelf, as it was."""
    with connect(server) as client:
        client.undelete_adapter(name)
    terminal.say(f"put back {name}")


@adapters.command
def log(
    name: Annotated[str, Parameter(help="Name of an adapter, removed or not. Default: all.")] = "",
    /,
    *,
    most: Annotated[int, Parameter(validator=Number(gte=1), help="How many changes to show, the newest first.")] = 50,
    server: Server = None,
    json: Json = False,
) -> None:
    """Show who changed what and when. Who is what callers say of themselves, in LORAMUX_WHO here."""
    with connect(server) as client:
        found = list(islice(client.list_audit_events(name), most))
    if json:
        terminal.say_json(found)
        return
    terminal.say_table(("time", "who", "action", "adapter", "what"), map(_row, found))


def _without(values: dict[str, Any], keys: Sequence[str] | None) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in (keys or ())}


def _row(event: shelf.AuditEvent) -> tuple[str, ...]:
    time = "-" if event.time is None else terminal.moment(event.time)
    adapter = event.adapter if event.version is None else f"{event.adapter}@{event.version}"
    return time, event.who, event.action, adapter, event.detail
