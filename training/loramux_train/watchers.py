"""What is told while a run goes on: to a person, to a log of JSON lines, to TensorBoard.

Takes events; writes lines. Knows no model. A watcher overrides the events it cares about; samples and reports are
watchers too.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from loramux_store.layout import Layout
from loramux_train.errors import PackageMissing
from loramux_train.output.adapter_file import Saved
from loramux_train.output.atomic import write_whole
from loramux_train.training import Report, Training


@dataclass(frozen=True, slots=True)
class End:
    """A run that is done. warnings: those of the report."""

    saved: Saved
    layout: Layout
    report: Path
    warnings: tuple[str, ...]


class Watcher:
    """Hears of everything and does nothing."""

    def started(self, training: Training) -> None:
        """Before the first step, also of a run that goes on; training.done are done."""

    def stepped(self, report: Report) -> None:
        """After every step."""

    def validated(self, step: int, loss: float, best: bool) -> None:
        """After a validation."""

    def saved(self, step: int, path: Path) -> None:
        """After a checkpoint is on disk."""

    def ended(self) -> None:
        """After the last step, also when an error ended the run."""

    def finished(self, end: End) -> None:
        """After the adapter and the report are on disk."""


class Bar(Watcher):
    """A progress bar on standard error."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def started(self, training: Training) -> None:
        steps = training.recipe.run.steps
        self._bar = tqdm(total=steps, initial=training.done, unit="step", dynamic_ncols=True)

    def stepped(self, report: Report) -> None:
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{report.loss:.4f}", refresh=False)
            self._bar.update()

    def validated(self, step: int, loss: float, best: bool) -> None:
        if self._bar is not None:
            self._bar.write(f"step {step}: validation loss {loss:.4f}{', the best' if best else ''}")

    def ended(self) -> None:
        if self._bar is not None:
            self._bar.close()


class JsonLog(Watcher):
    """Lines of JSON, one an event. A run that goes on drops the lines after its checkpoint first. measure: what
    validation losses are measured by; only those of one are compared."""

    def __init__(self, path: Path, measure: str = "") -> None:
        self._path, self._measure = path, measure
        self._started = time.monotonic()

    def started(self, training: Training) -> None:
        kept = [line for line in _lines(self._path) if _step(line) <= training.done]
        write_whole(self._path, ["".join(f"{line}\n" for line in kept).encode()])
        self._file = self._path.open("a")

    def stepped(self, report: Report) -> None:
        self._write(
            event="step",
            step=report.step,
            loss=report.loss,
            rates=report.rates,
            gradient_norm=report.gradient_norm,
            learnt=report.learnt,
        )

    def validated(self, step: int, loss: float, best: bool) -> None:
        self._write(event="validation", step=step, loss=loss, best=best, measure=self._measure)

    def saved(self, step: int, path: Path) -> None:
        self._write(event="checkpoint", step=step, file=path.name)

    def ended(self) -> None:
        self._file.close()

    def _write(self, **event: Any) -> None:
        event["seconds"] = round(time.monotonic() - self._started, 3)
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()


class TensorBoard(Watcher):
    """Losses, rates and gradients for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        self._make = tensorboard_writer()
        self._folder = folder

    def started(self, training: Training) -> None:
        self._writer = self._make(str(self._folder), purge_step=training.done + 1)

    def stepped(self, report: Report) -> None:
        self._writer.add_scalar("loss/train", report.loss, report.step)
        self._writer.add_scalar("gradient_norm", report.gradient_norm, report.step)
        for index, rate in enumerate(report.rates):
            self._writer.add_scalar(f"rate/{('unet', 'text_encoder')[index]}", rate, report.step)

    def validated(self, step: int, loss: float, best: bool) -> None:
        self._writer.add_scalar("loss/validation", loss, step)

    def ended(self) -> None:
        self._writer.close()


def tensorboard_writer() -> Any:
    """What writes for TensorBoard. PackageMissing where it is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise PackageMissing("output.tensorboard needs the package tensorboardX: pip install tensorboardX") from error
    return SummaryWriter


def _lines(path: Path) -> list[str]:
    """Whole lines: one cut off by a kill is dropped."""
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def _step(line: str) -> int:
    return json.loads(line)["step"]
