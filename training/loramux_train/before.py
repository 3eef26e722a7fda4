"""All that is checked before anything is trained, by `check`, a dry run and a run alike.

Takes settings, and what was found in the folders of pictures; gives what a run begins with, or says why none may start.
Reads no weights but, of a run that goes on, the base's for its digest. Writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from loramux_train import base, checkpoint
from loramux_train.config import Config, as_values
from loramux_train.data.order import Order
from loramux_train.data.survey import Survey
from loramux_train.data_set import DataSet, captions_of, data_set
from loramux_train.errors import AlreadyFinished, BadSetting, CannotResume, TrainError
from loramux_train.finishing import is_finished, result_files
from loramux_train.outline import Outline
from loramux_train.outlook import Outlook, outlook_of
from loramux_train.run_facts import about_of
from loramux_train.same_data import check_same_data
from loramux_train.snapshot import Snapshot
from loramux_train.tokens.checks import check_captions
from loramux_train.watchers import tensorboard_writer

Resume = Path | Literal["latest"] | None


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run goes on, and what the checkpoint says of its settings."""

    snapshot: Snapshot
    then: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Before:
    """What a run begins with. start: None for one from the beginning."""

    outlook: Outlook
    start: Start | None


def prepare(config: Config, resume: Resume = None) -> Before:
    """All that settings, base and the run's folder decide.

    Raises:
        TrainError: why no run may start.
    """
    outlook = outlook_of(config)
    about_of(config)
    if config.output.tensorboard:
        tensorboard_writer()
    return Before(outlook, _start(config, resume, outlook))


def check_pictures(config: Config, outline: Outline, held_out: int, captions: Sequence[str] | None) -> None:
    """All that the pictures decide. held_out: how many; captions: all that may be learnt from, where they are known.

    Raises:
        BadSetting: for settings that need other pictures or other captions.
    """
    if not held_out:
        _check_none_held_out(config)
    if config.tokens.new and captions is not None:
        check_captions(config.tokens, base.tokenizers(outline), captions)


def check_all(config: Config, found: Survey, resume: Resume = None, changed_data: bool = False) -> None:
    """Everything, with the pictures that were found.

    Raises:
        TrainError: why no run may start.
    """
    before = prepare(config, resume)
    found.require()
    check_pictures(config, before.outlook.outline, len(found.kept_out), captions_of(found))
    if before.start is not None and not changed_data and not found.lacks_class_pictures:
        check_same_data(before.start.then, settings_of(config, before.outlook) | _data_set(found).known())


def refusals(config: Config, found: Survey) -> list[str]:
    """Why a run would not start, besides what the survey says."""
    reasons: list[str] = []
    try:
        before = prepare(config)
        check_pictures(config, before.outlook.outline, len(found.kept_out), captions_of(found))
    except TrainError as error:
        reasons += str(error).splitlines()
    return reasons


def settings_of(config: Config, outlook: Outlook) -> dict[str, Any]:
    """What checkpoints say of a run: its settings, where a base is what it is, wherever it lies, and when it began."""
    known = {"sha256": base.digest(outlook.outline), "prediction": outlook.noise.prediction}
    return as_values(config) | {"base": known, "started": datetime.now(UTC).isoformat()}


def checkpoints(config: Config) -> Path:
    """Where the checkpoints go."""
    return config.output.folder / "checkpoints"


def _start(config: Config, resume: Resume, outlook: Outlook) -> Start | None:
    """Where to go on, or None for a run from the beginning."""
    folder = checkpoints(config)
    here = checkpoint.every(folder)
    if resume is None:
        if here:
            raise CannotResume(f"{config.output.folder} holds a run, the newest checkpoint is {here[-1].name}: go on "
                               "with --resume latest, or choose another output.folder")  # fmt: skip
        return None
    if resume == "latest" and not here:
        raise CannotResume(f"there are no checkpoints in {folder}; start without --resume")
    snapshot, then = checkpoint.read(here[-1] if resume == "latest" else resume)
    checkpoint.check_same(then, settings_of(config, outlook))
    steps, written = config.run.steps, result_files(config)[0]
    early = config.run.patience is not None and snapshot.numbers["best"]["since"] >= config.run.patience
    if snapshot.step > steps or ((snapshot.step == steps or early) and is_finished(config, snapshot.step)):
        ended = f", where run.patience ended it; raise that or set it to go on ({written})"
        last = f"; raise run.steps to go on ({written})"
        raise AlreadyFinished(f"already at step {snapshot.step} of {steps}{ended if early else last}")
    return Start(snapshot, then)


def _data_set(found: Survey) -> DataSet:
    return data_set(found, Order(found.pictures, found.settings), cached=False)


def _check_none_held_out(config: Config) -> None:
    if config.output.which == "best":
        raise BadSetting("output.which is best, which needs held-out pictures: set data.validation_share")
    if config.run.patience is not None:
        raise BadSetting(
            f"run.patience is {config.run.patience}, which needs held-out pictures: set data.validation_share"
        )
