"""`loramux train run|check|presets|settings`.

Takes a settings file and flags; calls a run and prints what it was. An error is one line for each reason and exit
status 1; misuse is 2. It imports torch last.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from loramux_client import terminal
from loramux_train import presets as preset_text
from loramux_train import settings_table
from loramux_train.config import fields
from loramux_train.errors import BadSetting, TrainError

FAILED, MISUSED, INTERRUPTED = 1, 2, 130

Words = Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]


def _settings_help() -> str:
    lines = [f"  --{name}  {field.description}" for name, field in fields()]
    return "\n".join(["Settings, over those of CONFIG.toml, as --section.key VALUE:", "", *lines])


train = App(name="loramux train", help="Train an adapter.", help_format="plaintext", version_flags=[])


@train.command(help_epilogue=_settings_help())
def run(
    *words: Words,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    resume: str | None = None,
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Train an adapter by the settings of CONFIG.toml, of flags, or of both.

    Parameters
    ----------
    dry_run
        Print the plan and stop.
    resume
        Go on from a checkpoint: its file, or `latest`.
    quiet
        No plan and no progress bar.
    """
    try:
        file, flags = _split(words)
        return _run(file, flags, dry_run, resume, quiet)
    except BadSetting as error:
        return _told(error, MISUSED)
    except TrainError as error:
        return _told(error, FAILED)


@train.command
def presets() -> int:
    """Show what the names of ranks, layers and blocks stand for."""
    print(preset_text.text())
    return 0


@train.command
def settings() -> int:
    """Show every setting with its default, as Markdown."""
    print(settings_table.text())
    return 0


train.command("loramux_train.data.check_command:check", name="check")


def _split(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    if words and not words[0].startswith("-"):
        return Path(words[0]), list(words[1:])
    return None, list(words)


def _run(file: Path | None, flags: list[str], dry_run: bool, resume: str | None, quiet: bool) -> int:
    # Where other processes take their share of the cores, threads that wait by spinning use up their own. libgomp reads
    # this when torch is imported.
    os.putenv("OMP_WAIT_POLICY", "PASSIVE")
    from transformers.utils.logging import disable_progress_bar

    from loramux_train import base, config, session
    from loramux_train.data.notes import DataError
    from loramux_train.data_source import open_folders
    from loramux_train.watchers import Bar, JsonLog, TensorBoard

    disable_progress_bar()
    made = config.read(file, flags, base.native_resolution)
    _, plan = session.plan_of(made)
    if not quiet or dry_run:
        print(plan.text())
    if dry_run:
        return 0
    watchers = [JsonLog(made.output.folder / "log.jsonl")]
    watchers += [] if quiet else [Bar()]
    watchers += [TensorBoard(made.output.folder / "tensorboard")] if made.output.tensorboard else []
    start = resume if resume in (None, "latest") else Path(resume)
    try:
        path = session.run(made, open_folders, start, watchers)
    except DataError as error:
        return _told(error, FAILED)
    except session.Stopped as stopped:
        return _told(stopped, INTERRUPTED)
    print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


def _told(error: Exception, status: int) -> int:
    for line in str(error).splitlines():
        terminal.complain(f"loramux: {line}")
    return status
