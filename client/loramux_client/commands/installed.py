"""Commands that other packages bring: serve, demo, bench, train, config.

Takes: the entry points of the group `loramux.commands` (name -> function or cyclopts App). Gives:
commands that load them when they are run, never before: theirs is torch. Does not know what they do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

from cyclopts import App, Parameter

GROUP = "loramux.commands"

# Asking the functions themselves for their help would import torch.
_SUMMARIES = {
    "serve": "Serve pictures over gRPC.",
    "demo": "Show the main job: many blends in one forward.",
    "config": "Show the server's configuration.",
    "bench": "Measure this machine.",
    "train": "Train an adapter.",
}

Tokens = Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]


class ExtraMissing(Exception):
    """A command's package is here, but not what it needs."""


def installed_commands(found: Iterable[EntryPoint] | None = None) -> list[App]:
    """A stand-in for each command found."""
    points = entry_points(group=GROUP) if found is None else found
    return [_stand_in(point) for point in sorted(points, key=lambda point: point.name)]


def _stand_in(point: EntryPoint) -> App:
    def run(*tokens: Tokens) -> Any:
        return _load(point)(tokens)

    summary = _SUMMARIES.get(point.name, f"From {point.module}.")
    # No flags of its own: `loramux serve --help` is for the real command to answer.
    return App(name=point.name, help=summary, help_flags=[], version_flags=[], default_command=run)


def _load(point: EntryPoint) -> Callable[[tuple[str, ...]], Any]:
    """The real command, which reads its own tokens."""
    try:
        command = point.load()
    except ModuleNotFoundError as missing:
        extra = point.module.partition(".")[0].removeprefix("loramux_")
        raise ExtraMissing(
            f"`loramux {point.name}` needs {missing.name}, which is not installed: pip install 'loramux[{extra}]'"
        ) from None
    if isinstance(command, App):
        app = command
    else:
        app = App(name=f"loramux {point.name}", default_command=command, version_flags=[])
    return lambda tokens: app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
