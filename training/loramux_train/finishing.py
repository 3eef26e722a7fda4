"""The end of a run: its adapter and its report.

Takes what the loop leaves; writes the adapter's file, then the report, also of a run that was stopped. Knows no loop.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from loramux_train import base
from loramux_train.best import Best
from loramux_train.config import Config, to_toml
from loramux_train.data_set import DataSet
from loramux_train.outlook import Outlook
from loramux_train.output.adapter_file import Saved, save_adapter
from loramux_train.output.base_layout import canonical_path
from loramux_train.output.errors import NothingLearnt
from loramux_train.output.facts import Progress, RunFacts
from loramux_train.output.norms import GroupNorm, group_norms
from loramux_train.output.report import RunReport, write_report
from loramux_train.output.run_log import read_log
from loramux_train.output.trained import TrainedModule
from loramux_train.output.warnings import SamplePair
from loramux_train.samples import Samples
from loramux_train.tokens.files import embedding_file, save_bundle, save_embedding
from loramux_train.training import Training
from loramux_train.watchers import End


@dataclass(frozen=True, slots=True)
class Finishing:
    """What is told of a run. samples: None where none are drawn."""

    config: Config
    outlook: Outlook
    data: DataSet
    facts: RunFacts
    training: Training
    samples: Samples | None

    def finish(self, best: Best) -> End:
        """Write the adapter, and the report of a run that is done.

        Raises:
            NothingLearnt, Unsayable: where the factors are not worth a file or do not fit one; none is written.
            OSError: as of the disk.
        """
        wanted = self.config.output.which == "best"
        values, step = (best.values, best.step) if wanted else (self.training.values, self.training.done)
        modules, output = self.training.injected.modules(values), self.config.output
        progress, path = self._progress(step), adapter_file(self.config)
        if not self.training.tokens.changed(values):
            raise NothingLearnt(
                "vectors of new words are still those they began with, nothing was written; "
                "raise tokens.rate or run.steps"
            )
        written: tuple[Path, ...] = ()
        if not self.config.tokens.alone:
            layout = self.outlook.layout
            written = save_adapter(modules, layout, self.facts, progress, output.form, output.dtype, path).files
        saved = Saved(result_files(self.config)[0], (*written, *self._save_tokens(values, step)))
        pairs = () if self.samples is None else self.samples.compare(values)
        files = tuple(str(file.relative_to(output.folder)) for file in saved.files)
        report = self._report(modules, pairs, (), files)
        html, _ = write_report(report, output.folder)
        return End(saved, self.outlook.layout, html, report.warnings())

    def _save_tokens(self, values: Mapping[str, Tensor], step: int) -> list[Path]:
        """A file for each new word, and the bundle."""
        new, folder = self.config.tokens.new, self.config.output.folder
        words = {token: self.training.tokens.vectors(values, number) for number, token in enumerate(new)}
        about = {"ss_steps": str(step), "ss_new_sd_model_hash": base.digest(self.outlook.outline)}
        for token, vectors in words.items():
            save_embedding(embedding_file(folder, token), token, vectors, self.outlook.outline.family, about)
        if self.config.tokens.bundle:
            save_bundle(adapter_file(self.config), bundle_file(self.config), words)
        return [file for file in result_files(self.config) if file != adapter_file(self.config)]

    def tell(self, why: str) -> Path:
        """Write the report of a run that ended before its last step."""
        modules = self.training.injected.modules(self.training.values)
        pairs = () if self.samples is None else self.samples.seen()
        html, _ = write_report(self._report(modules, pairs, (why,), ()), self.config.output.folder)
        return html

    def _report(
        self,
        modules: Sequence[TrainedModule],
        pairs: tuple[SamplePair, ...],
        notes: tuple[str, ...],
        files: tuple[str, ...],
    ) -> RunReport:
        return RunReport(
            facts=self.facts,
            progress=self._progress(self.training.done),
            log=read_log(log_file(self.config)),
            norms=self._norms(modules) if self.training.done else (),
            pairs=pairs,
            sheet=None if self.samples is None else self.samples.sheet.image(),
            plan=self._plan(),
            data=self._data(),
            config=to_toml(self.config),
            notes=(*notes, *self.outlook.warnings, *self.data.warnings),
            files=files,
        )

    def _norms(self, modules: Sequence[TrainedModule]) -> tuple[GroupNorm, ...]:
        parts, weights = self.training.base.parts(), dict[str, Tensor]()
        for layer in self.outlook.plan.layers:
            frozen: Any = parts[layer.part].get_submodule(f"{layer.path}.base_layer")
            weights[canonical_path(layer.part, layer.path)] = frozen.weight
        return group_norms(modules, weights)

    def _progress(self, step: int) -> Progress:
        last = max(0, step * self.config.run.accumulation - 1)
        return Progress(step, self.data.epoch_at(last) + 1, datetime.now(UTC))

    def _plan(self) -> dict[str, str]:
        plan = self.outlook.plan
        parts = dict.fromkeys(layer.part for layer in plan.layers)
        return {
            "layers": ", ".join(f"{len(plan.of(part))} of {part}" for part in parts),
            "trained parameters": f"{plan.parameters:,}, {plan.parameters / plan.base_parameters:.2%} of the base's",
            "estimated memory": f"{plan.memory / 2**20:,.0f} MiB and activations",
            "numbers of the base": self.outlook.precision,
        }

    def _data(self) -> dict[str, str]:
        data = self.data.facts
        sizes = ", ".join(f"{width}x{height} ({count})" for (width, height), count in sorted(data.buckets.items()))
        return {
            "pictures": str(sum(folder.pictures for folder in data.folders if not folder.prior)),
            "class pictures": str(sum(folder.pictures for folder in data.folders if folder.prior)),
            "held out": str(self.data.held_out),
            "sizes": sizes,
            "batches an epoch": str(data.batches_an_epoch),
        }


def adapter_file(config: Config) -> Path:
    """Where the adapter goes: a file, in PEFT's form a folder."""
    output = config.output
    return output.folder / (output.name if output.form == "peft" else f"{output.name}.safetensors")


def bundle_file(config: Config) -> Path:
    """Where the adapter with new words' vectors in it goes."""
    return config.output.folder / f"{config.output.name}-bundle.safetensors"


def result_files(config: Config) -> list[Path]:
    """What a run leaves: the adapter, if it trains one, each new word's vectors, and the bundle."""
    adapter = [] if config.tokens.alone else [adapter_file(config)]
    words = [embedding_file(config.output.folder, token) for token in config.tokens.new]
    return [*adapter, *words, *([bundle_file(config)] if config.tokens.bundle else [])]


def log_file(config: Config) -> Path:
    """Where the log goes."""
    return config.output.folder / "log.jsonl"


def is_finished(config: Config, step: int) -> bool:
    """Whether a run that came to this step has written all it leaves: the report is the last."""
    reported, files = _reported(config)
    return reported == step and files and all(path.exists() for path in result_files(config))


def drop_report(config: Config, step: int) -> None:
    """Remove a report of later steps, after which a run that goes on here would seem finished when it comes to them."""
    if _reported(config)[0] > step:
        for name in ("report.json", "report.html"):
            (config.output.folder / name).unlink(missing_ok=True)


def _reported(config: Config) -> tuple[int, bool]:
    """The step of the report, -1 where there is none, and whether files were written then."""
    try:
        said = json.loads((config.output.folder / "report.json").read_text())
        return int(said["progress"]["step"]), bool(said["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1, False
