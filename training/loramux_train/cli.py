"""`loramux train run|check|presets|settings`.

Takes folders, a settings file and flags; calls a run and prints what it was. An error is one line for each reason and
exit status 1; misuse is 2. It imports torch last.
"""

import os
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from loramux_client import terminal
from loramux_client.settings import read_settings
from loramux_train import presets as preset_text
from loramux_train import settings_table
from loramux_train.config import fields
from loramux_train.errors import BadSetting, TrainError
from loramux_train.output.destination import Destination

FAILED, MISUSED, INTERRUPTED = 1, 2, 130

Yes = Parameter(negative="")
Words = Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]


def _settings_help() -> str:
    lines = [f"  --{name}  {field.description}" for name, field in fields()]
    return "\n".join(["Settings, over those of CONFIG.toml, as --section.key VALUE:", "", *lines])


train = App(name="loramux train", help="Train an adapter.", help_format="plaintext", version_flags=[])


@train.command(help_epilogue=_settings_help())
def run(
    *words: Words,
    dry_run: Annotated[bool, Yes] = False,
    resume: str | None = None,
    changed_data: Annotated[bool, Yes] = False,
    push: str | None = None,
    server: str | None = None,
    store: Path | None = None,
    quiet: Annotated[bool, Yes] = False,
) -> int:
    """Train an adapter on folders of pictures, by the settings of CONFIG.toml, of flags, or of both.

    Exit status: 0 done, 1 it could not be done, 2 misused, 130 stopped by a signal.

    Parameters
    ----------
    dry_run
        Print the plan, check all that a run checks, and stop.
    resume
        Go on from a checkpoint: its file, or `latest`. Checkpoints of later steps are removed.
    changed_data
        Go on although pictures, captions or data settings are other ones than the checkpoint's.
    push
        Put the adapter on the shelf under this name, new words as NAME-WORD, and print NAME@VERSION of each.
    server
        HOST:PORT of the server whose shelf it is. Default: LORAMUX_SERVER, else 127.0.0.1:50051.
    store
        Folder of a store, instead of a server.
    quiet
        No plan and no progress bars.
    """
    try:
        to = _destination(push, server, store)
        return _run(*_split(words), dry_run, resume, changed_data, to, quiet)
    except BadSetting as error:
        return _told(error, MISUSED)
    except (TrainError, OSError) as error:
        return _told(error, FAILED)
    except KeyboardInterrupt:
        return _told(Exception("stopped; where there is a checkpoint, --resume latest goes on"), INTERRUPTED)


@train.command(help_epilogue=_settings_help())
def check(*words: Words, json: Annotated[bool, Yes] = False, sheet: Path | None = None) -> int:
    """Say what a run would be trained on, and whether it would start. It takes what `run` takes.

    Exit status: 0 a run would start, 1 it could not be said, 2 misused, 3 a run would be refused.

    Parameters
    ----------
    json
        Print JSON.
    sheet
        Write a picture of every picture as it is trained on.
    """
    try:
        return _check(*_split(words), json, sheet)
    except BadSetting as error:
        return _told(error, MISUSED)
    except (TrainError, OSError) as error:
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


def _split(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """A settings file and folders of pictures, whichever are given, and what follows as flags."""
    count = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
    places, flags = words[:count], list(words[count:])
    files = [place for place in places if place.endswith(".toml")]
    folders = [place for place in places if not place.endswith(".toml")]
    if len(files) > 1:
        raise BadSetting(f"{len(files)} settings files, {', '.join(files)}; expected one")
    if folders:
        flags = ["--data.folders", dumps(folders, ensure_ascii=False), *flags]
    return (Path(files[0]) if files else None), flags


def _destination(push: str | None, server: str | None, store: Path | None) -> Destination | None:
    if push is None:
        if server is not None or store is not None:
            raise BadSetting(f"{'--server' if store is None else '--store'} says where to push; expected --push NAME")
        return None
    if server is not None and store is not None:
        raise BadSetting("--server and --store: expected one of them")
    known = read_settings()
    return Destination(push, (server or known.server) if store is None else None, store, known.who)


def _check(file: Path | None, flags: list[str], json: bool, sheet: Path | None) -> int:
    _quiet_libraries()
    from loramux_train import base, config
    from loramux_train.before import refusals
    from loramux_train.data.telling import check_sheet, surveyed, tell
    from loramux_train.data_source import tokens_of

    if sheet is not None:
        check_sheet(sheet)
    made = config.read(file, flags, base.native_resolution)
    found = surveyed(made.data, tokens_of(base.outline_of(base.find(made.base.path))))
    return tell(found, refusals(made, found), json=json, sheet=sheet)


def _run(
    file: Path | None,
    flags: list[str],
    dry_run: bool,
    resume: str | None,
    changed_data: bool,
    to: Destination | None,
    quiet: bool,
) -> int:
    # Where other processes take their share of the cores, threads that wait by spinning use up their own. libgomp reads
    # this when torch is imported.
    os.putenv("OMP_WAIT_POLICY", "PASSIVE")
    _quiet_libraries()
    from loramux_train import base, config, session
    from loramux_train.before import check_all
    from loramux_train.data.telling import surveyed
    from loramux_train.data_source import tokens_of
    from loramux_train.outlook import outlook_of
    from loramux_train.output.push import check_push
    from loramux_train.shelved import items_of
    from loramux_train.telling import Telling, opened
    from loramux_train.watchers import Bar, TensorBoard

    made = config.read(file, flags, base.native_resolution)
    outlook = outlook_of(made)
    plan = outlook.plan
    if not quiet or dry_run:
        print(plan.text())
    for warning in outlook.warnings:
        terminal.complain(f"loramux: warning: {warning}")
    items = () if to is None else items_of(made, {layer.part for layer in plan.layers}, to.name)
    if to is not None and (warning := check_push(to, items)):
        terminal.complain(f"loramux: warning: {warning}")
    start = resume if resume in (None, "latest") else Path(resume)
    if dry_run:
        check_all(made, surveyed(made.data, tokens_of(outlook.outline)), start, changed_data)
        return 0
    watchers = [] if quiet else [Bar()]
    watchers += [TensorBoard(made.output.folder / "tensorboard")] if made.output.tensorboard else []
    try:
        session.run(made, opened(quiet), start, [*watchers, Telling(to, items)], changed_data)
    except session.Stopped as stopped:
        return _told(stopped, INTERRUPTED)
    return 0


def _quiet_libraries() -> None:
    """What they print while they load models is no news of the run."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _told(error: Exception, status: int) -> int:
    for line in str(error).splitlines():
        terminal.complain(f"loramux: {line}")
    return status
