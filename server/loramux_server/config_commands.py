"""`loramux config`: what the settings are and where each is from, whether a server would start with them, new tokens.

Takes options as `loramux serve` does; gives text. It starts nothing, and serves on no port.
"""

import sys
from typing import Annotated, Literal

from cyclopts import App, Parameter

from loramux_client import terminal
from loramux_server.access import Scope, entry_text, new_token
from loramux_server.errors import BadSetting
from loramux_server.flags import Flags, given
from loramux_server.settings import load, origin

config = App(
    name="loramux config", help="Show and check the server's settings, make tokens, list metrics.", version_flags=[]
)

ScopeName = Literal["generate", "adapters.read", "adapters.write", "admin"]
Given = Annotated[Flags | None, Parameter(name="*")]


@config.command
def show(*, flags: Given = None, json: Annotated[bool, Parameter(negative="", help="Print JSON.")] = False) -> int:
    """Show every setting, and whether an option, a variable, the file or the default has given it."""
    said = given(flags)
    try:
        settings = load(**said)
    except BadSetting as error:
        return _complain(error)
    rows = {name: (value, origin(name, said, settings)) for name, value in settings}
    if json:
        terminal.say_json({name: {"value": _plain(value), "from": where} for name, (value, where) in rows.items()})
        return 0
    for name, (value, where) in rows.items():
        terminal.say(f"{name:<30}{'' if value is None else _plain(value)!s:<34}{where}".rstrip())
    return 0


@config.command
def check(*, flags: Given = None) -> int:
    """Say whether a server would start with these settings: exit status 0 if it would, 2 with the reasons if not.

    Looked at are addresses, tokens, certificates, device, kernels, the base's files and the store, in whose place an
    empty folder is made and removed. Not asked is whether ports are free, nor what only loading the base tells: damaged
    weights, too little memory, budgets that are too small for it.
    """
    try:
        settings = load(**given(flags))
    except BadSetting as error:
        return _complain(error)
    from loramux_server.checking import faults

    if found := list(faults(settings)):
        print("\n".join(found), file=sys.stderr)
        return 2
    terminal.say("all is well")
    return 0


@config.command
def token(
    name: Annotated[str, Parameter(help="Whose it is.")],
    /,
    *,
    scope: Annotated[list[ScopeName], Parameter(help="What it is good for; may be given again.", negative="")],
) -> int:
    """Make a token. It is printed on standard output, once; the table for the file of --tokens on standard error."""
    made = new_token()
    try:
        text = entry_text(name, made, map(Scope, scope))
    except BadSetting as error:
        return _complain(error)
    print(text, file=sys.stderr)
    print(made)
    return 0


@config.command
def metrics() -> int:
    """Print all metrics of /metrics as a table in Markdown, which docs/metrics.md holds."""
    from loramux_server.described import table
    from loramux_server.metrics import Metrics

    print(table(Metrics().described))
    return 0


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _complain(error: BadSetting) -> int:
    print(error, file=sys.stderr)
    return 2
