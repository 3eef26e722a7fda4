"""A whole run: from settings to an adapter's file.

Takes settings and what opens the data; gives the path of the adapter. It joins the pieces, decides when to validate,
save and stop, and knows none of their insides.
"""

import signal
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from loramux_train import base, checkpoint, plan
from loramux_train.adapter import save_adapter
from loramux_train.batch import Batches
from loramux_train.best import Best
from loramux_train.config import Config, as_values, to_toml
from loramux_train.errors import AlreadyFinished, BadSetting, CannotResume, NothingLearnt
from loramux_train.injection import inject, learnt
from loramux_train.noise import Noise
from loramux_train.optimisers import check_installed
from loramux_train.outline import Outline
from loramux_train.plan import Plan
from loramux_train.snapshot import restore, take
from loramux_train.training import HeldOut, Training
from loramux_train.watchers import Watcher

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Data:
    """What a run learns from and what it is measured on; held_out may be empty."""

    batches: Batches
    held_out: HeldOut


OpenData = Callable[[Config, Outline, torch.device], Data]
"""Opens the data of a run for a base, whose VAE it encodes pictures with on the device."""

Resume = Path | Literal["latest"] | None


class Stopped(Exception):
    """A run was asked to stop; its checkpoint is on disk."""


def plan_of(config: Config) -> tuple[Outline, Plan]:
    """What a run would do; no weights are read.

    Raises:
        BadBase, BadSetting, PackageMissing: for what would stop it.
    """
    outline = base.outline_of(base.find(config.base.path))
    Noise.of(outline.scheduler, config.base.prediction)
    check_installed(config.optimiser.name)
    parts = base.meta_parts(outline)
    size = torch.finfo(DTYPES[_precision(config)]).bits // 8
    return outline, plan.make(parts, config.targets, config.adapter, config.optimiser.name, size)


def run(config: Config, open_data: OpenData, resume: Resume = None, watchers: Sequence[Watcher] = ()) -> Path:
    """Train and write the adapter; its path.

    Raises:
        TrainError: for what stops a run; its checkpoints stay, and no adapter is written.
        Stopped: when the process was told to stop.
    """
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    outline, planned = plan_of(config)
    settings = _told(config, outline)
    start = _start(config, resume, settings)
    precision: Any = _precision(config)
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision, cpu=config.run.device == "cpu"
    )
    data = open_data(config, outline, accelerator.device)
    _check_held_out(config, len(data.held_out))
    frozen = base.load(outline, DTYPES[precision], accelerator.device)
    injected = inject(frozen.parts(), planned, config.adapter, config.run.seed)
    noise = Noise.of(outline.scheduler, config.base.prediction)
    training = Training(frozen, injected, noise, data.batches, config.recipe, accelerator)
    if config.data.cache is not None and not config.targets.text_encoder:
        training.text.keep(config.data.cache / "text")
    best = Best()
    if start is not None:
        restore(training, best, start)
    _write_settings(config)
    _loop(config, training, data.held_out, best, settings, watchers)
    return _finish(config, training, best)


def adapter_file(config: Config) -> Path:
    """Where the adapter goes."""
    return config.output.folder / f"{config.output.name}.safetensors"


def checkpoints(config: Config) -> Path:
    """Where the checkpoints go."""
    return config.output.folder / "checkpoints"


def _loop(
    config: Config,
    training: Training,
    held_out: HeldOut,
    best: Best,
    settings: dict[str, Any],
    watchers: Sequence[Watcher],
) -> None:
    with _told_of_end(training, watchers), _until_told_to_stop() as told:
        while not training.finished and not best.enough(config.run.patience):
            report = training.step()
            for watcher in watchers:
                watcher.stepped(report)
            if len(held_out) and _due(training, config.run.validate_every):
                _validate(training, held_out, best, watchers)
            stopping = bool(told) and not training.finished
            if _due(training, config.run.save_every) or stopping or best.enough(config.run.patience):
                path = checkpoint.write(checkpoints(config), take(training, best), settings, config.run.keep)
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


def _finish(config: Config, training: Training, best: Best) -> Path:
    values = best.values if config.output.which == "best" else training.values
    if learnt(values) == 0.0:
        raise NothingLearnt("every factor B is still zero: the adapter would change nothing, nothing was written; "
                            "raise optimiser.rate or run.steps")  # fmt: skip
    output, path = config.output, adapter_file(config)
    about = {"ss_steps": str(best.step if output.which == "best" else training.done)}
    save_adapter(path, training.injected.adapter(values), output.naming, about, DTYPES[output.dtype])
    return path


def _start(config: Config, resume: Resume, settings: dict[str, Any]) -> Any:
    """The snapshot to go on from, or None for a run from the beginning."""
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
    checkpoint.check_same(then, settings)
    steps, written = config.run.steps, adapter_file(config)
    if snapshot.step > steps or (snapshot.step == steps and written.exists()):
        raise AlreadyFinished(f"already at step {snapshot.step} of {steps}; raise run.steps to go on ({written})")
    return snapshot


def _told(config: Config, outline: Outline) -> dict[str, Any]:
    """The settings as checkpoints hold them: a base is what it is, wherever it lies."""
    values = as_values(config)
    prediction = Noise.of(outline.scheduler, config.base.prediction).prediction
    return values | {"base": {"sha256": base.digest(outline), "prediction": prediction}}


def _write_settings(config: Config) -> None:
    file = config.output.folder / "train.toml"
    partial = file.with_name("train.toml.part")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(to_toml(config))
    partial.replace(file)


def _check_held_out(config: Config, count: int) -> None:
    if count:
        return
    if config.output.which == "best":
        raise BadSetting("output.which is best, which needs held-out pictures: set data.validation_share")
    if config.run.patience is not None:
        raise BadSetting(
            f"run.patience is {config.run.patience}, which needs held-out pictures: set data.validation_share"
        )


def _precision(config: Config) -> str:
    cuda = torch.cuda.is_available() and config.run.device == "auto"
    if config.run.precision == "auto":
        return "bf16" if cuda and torch.cuda.is_bf16_supported() else "fp32"
    if config.run.precision == "fp16" and not cuda:
        raise BadSetting("run.precision is fp16, which needs a CUDA device; expected fp32 or bf16")
    return config.run.precision


@contextmanager
def _told_of_end(training: Training, watchers: Sequence[Watcher]) -> Generator[None]:
    for watcher in watchers:
        watcher.started(training)
    try:
        yield
    finally:
        for watcher in watchers:
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
