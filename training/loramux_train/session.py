"""A whole run: from settings to an adapter's file and a report.

Takes settings and what opens the data; gives the path of the adapter. It joins the pieces, decides when to validate,
save and stop, and knows none of their insides.
"""

import signal
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from loramux_train import base, checkpoint
from loramux_train.batch import Batches
from loramux_train.before import Resume, check_pictures, checkpoints, prepare, settings_of
from loramux_train.best import Best
from loramux_train.config import Config, to_toml
from loramux_train.data.opening import texts_folder
from loramux_train.data_set import DataSet
from loramux_train.errors import TrainError
from loramux_train.finishing import Finishing, drop_report, log_file
from loramux_train.injection import inject
from loramux_train.outlook import Outlook
from loramux_train.output.atomic import write_whole
from loramux_train.run_facts import facts_of
from loramux_train.same_data import check_same_data, measure_of
from loramux_train.samples import Samples, drawing_of, parts_of
from loramux_train.snapshot import restore, take
from loramux_train.tokens.vectors import Tokens
from loramux_train.training import HeldOut, Training
from loramux_train.watchers import JsonLog, Watcher


@dataclass(frozen=True, slots=True)
class Data:
    """What a run learns from and what it is measured on; held_out may be empty. vae: the base's, where opening the data
    took it; captions: all that may be learnt from, where they are known."""

    batches: Batches
    held_out: HeldOut
    told: DataSet
    vae: Any = None
    captions: tuple[str, ...] | None = None


OpenData = Callable[[Config, Outlook, torch.device], Data]
"""Opens the data of a run for a base, whose VAE it encodes pictures with on the device."""


class Stopped(Exception):
    """A run was asked to stop; its checkpoint is on disk."""


def run(
    config: Config,
    open_data: OpenData,
    resume: Resume = None,
    watchers: Sequence[Watcher] = (),
    changed_data: bool = False,
) -> Path:
    """Train and write the adapter and the report; the adapter's path.

    changed_data: go on although the data is another than the checkpoint's.

    Raises:
        TrainError: for what stops a run; its checkpoints stay, and no adapter is written.
        Stopped: when the process was told to stop.
        OSError: as of the disk.
    """
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    before = prepare(config, resume)
    outlook, start = before.outlook, before.start
    told = settings_of(config, outlook)
    mixed: Any = "no" if outlook.precision == "fp32" else outlook.precision
    accelerator = Accelerator(mixed_precision=mixed, cpu=config.run.device == "cpu")
    data = open_data(config, outlook, accelerator.device)
    check_pictures(config, outlook.outline, len(data.held_out), data.captions)
    told |= data.told.known()
    if start is not None:
        told["started"] = start.then["started"]
        if not changed_data:
            check_same_data(start.then, told)
    training = _training(config, outlook, data, accelerator)
    best = Best()
    if start is not None:
        restore(training, best, start.snapshot)
        if measure_of(start.then) != measure_of(told):
            best = Best()
    samples = _samples(config, outlook, training, data)
    finishing = Finishing(config, outlook, data.told, facts_of(config, outlook, data.told, told), training, samples)
    _drop_after(config, training.done)
    write_whole(config.output.folder / "train.toml", [to_toml(config).encode()])
    watching = [JsonLog(log_file(config), measure_of(told)), *watchers, *([] if samples is None else [samples])]
    with _told_on_early_end(finishing):
        _loop(config, training, data.held_out, best, told, watching)
        end = finishing.finish(best)
    for watcher in watching:
        watcher.finished(end)
    return end.saved.path


def _drop_after(config: Config, step: int) -> None:
    """Remove what the folder holds of later steps: a run that goes on from an earlier checkpoint takes another course,
    and nothing shall take the one it left for it. The log and the samples drop theirs when they start."""
    checkpoint.drop_after(checkpoints(config), step)
    drop_report(config, step)


def _training(config: Config, outlook: Outlook, data: Data, accelerator: Accelerator) -> Training:
    frozen = base.load(outlook.outline, outlook.dtype, accelerator.device)
    injected = inject(frozen.parts(), outlook.plan, config.adapter, config.run.seed)
    tokens = Tokens(frozen, config.tokens, config.run.seed)
    training = Training(frozen, injected, outlook.noise, data.batches, config.recipe, accelerator, tokens)
    texts = texts_folder(config.data)
    if texts is not None and not config.targets.text_encoder:
        training.text.keep(texts)
    return training


def _samples(config: Config, outlook: Outlook, training: Training, data: Data) -> Samples | None:
    prompts = config.samples.prompts or data.told.prompts
    if not config.samples.every or not prompts:
        return None
    vae = data.vae
    if vae is None:
        vae = base.load_vae(outlook.outline, torch.float32, torch.device("cpu"))
    parts = parts_of(training.base, vae, outlook.noise)
    drawing = drawing_of(config, training.base, prompts)
    return Samples(config.output.folder / "samples.png", parts, drawing, config.samples.every)


def _loop(
    config: Config,
    training: Training,
    held_out: HeldOut,
    best: Best,
    told: dict[str, Any],
    watchers: Sequence[Watcher],
) -> None:
    with _told_of_end(training, watchers), _until_told_to_stop() as asked:
        if training.finished and not best.step and len(held_out):  # what was the best is measured otherwise now
            _validate(training, held_out, best, watchers)
        while not training.finished and not best.enough(config.run.patience):
            report = training.step()
            for watcher in watchers:
                watcher.stepped(report)
            if len(held_out) and _due(training, config.run.validate_every):
                _validate(training, held_out, best, watchers)
            stopping = bool(asked) and not training.finished
            if _due(training, config.run.save_every) or stopping or best.enough(config.run.patience):
                path = checkpoint.write(checkpoints(config), take(training, best), told, config.run.keep)
                for watcher in watchers:
                    watcher.saved(training.done, path)
            if stopping:
                raise Stopped(f"stopped at step {training.done} of {config.run.steps}; go on with --resume latest")


def _validate(training: Training, held_out: HeldOut, best: Best, watchers: Sequence[Watcher]) -> None:
    loss = training.validate(held_out)
    better = best.see(training.done, loss, training.values)
    for watcher in watchers:
        watcher.validated(training.done, loss, better)


def _due(training: Training, each: int) -> bool:
    return training.done % each == 0 or training.finished


@contextmanager
def _told_on_early_end(finishing: Finishing) -> Generator[None]:
    """What ends the run before its adapter is written is told in the report, if the disk takes one."""
    try:
        yield
    except (TrainError, Stopped, OSError) as early:
        with suppress(OSError):
            finishing.tell(str(early))
        raise


@contextmanager
def _told_of_end(training: Training, watchers: Sequence[Watcher]) -> Generator[None]:
    begun: list[Watcher] = []
    try:
        for watcher in watchers:
            watcher.started(training)
            begun.append(watcher)
        yield
    finally:
        for watcher in begun:
            watcher.ended()


@contextmanager
def _until_told_to_stop() -> Generator[list[int]]:
    """Within it the first SIGINT or SIGTERM is noted, so that a step is finished and saved; the second acts as ever.
    Only the main thread may ask for signals."""
    told: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before: dict[int, Any] = {}

    def note(number: int, _: Any) -> None:
        told.append(number)
        signal.signal(number, before[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, note)
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
