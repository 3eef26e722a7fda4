"""Commands that other packages bring: serve, demo, bench, train, config, and the store's tools.

Takes: the entry points of the group `loramux.commands` (name -> function or cyclopts App), and of the tools the places
where the `server` extra has them. Gives: commands that load them when they are run, never before: theirs is torch. Does
not know what they do.
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

_TOOLS = {
    "check": "Say whether a file would be taken; no server is asked.",
    "export": "Write a version for other programs, in kohya's, diffusers' or PEFT's form.",
    "merge": "Bake a blend into one file.",
    "fsck": "Compare the store's catalog with its files, and repair.",
    "gc": "Remove adapters deleted long ago, and files that no version needs.",
    "backup": "Back up the store, also while it is in use.",
    "restore": "Make a store of a backup.",
}
_TOOLS_PLACE = "loramux_server.shelf_commands"

Tokens = Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]


class ExtraMissing(Exception):
    """A command's package is here, but not what it needs."""


def installed_commands(found: Iterable[EntryPoint] | None = None) -> list[App]:
    """A stand-in for each command found."""
    points = entry_points(group=GROUP) if found is None else found
    ordered = sorted(points, key=lambda point: point.name)
    return [_stand_in(point, _SUMMARIES.get(point.name, f"From {point.module}.")) for point in ordered]


def shelf_tools() -> list[App]:
    """A stand-in for each of the store's tools, which work on the store's folder without a server."""
    points = [EntryPoint(name, f"{_TOOLS_PLACE}:{name}", GROUP) for name in _TOOLS]
    return [_stand_in(point, _TOOLS[point.name], "loramux adapters") for point in points]


def _stand_in(point: EntryPoint, summary: str, before: str = "loramux") -> App:
    def run(*tokens: Tokens) -> Any:
        return _load(point, f"{before} {point.name}")(tokens)

    # No flags of its own: `loramux serve --help` is for the real command to answer.
    return App(name=point.name, help=summary, help_flags=[], version_flags=[], default_command=run)


def _load(point: EntryPoint, spoken: str) -> Callable[[tuple[str, ...]], Any]:
    """The real command, which reads its own tokens."""
    try:
        command = point.load()
    except ModuleNotFoundError as missing:
        extra = point.module.partition(".")[0].removeprefix("loramux_")
        raise ExtraMissing(
            f"`{spoken}` needs {missing.name}, which is not installed: pip install 'loramux[{extra}]'"
        ) from None
    app = command if isinstance(command, App) else App(name=spoken, default_command=command, version_flags=[])
    return lambda tokens: app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
