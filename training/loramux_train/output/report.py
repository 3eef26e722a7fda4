"""A run's report: one HTML file that needs nothing else, and the same figures as JSON.

Takes what the run knows at its end; gives report.html and report.json. All text is untrusted (captions are strangers')
and escaped. Knows no loop and no models.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image

from loramux_train.output.atomic import write_whole
from loramux_train.output.chart import HEIGHT, WIDTH, Chart, chart, smoothed
from loramux_train.output.data_uri import data_uri
from loramux_train.output.facts import Progress, RunFacts
from loramux_train.output.norms import GroupNorm
from loramux_train.output.run_log import RunLog, Series
from loramux_train.output.warnings import SamplePair, warnings_of

__all__ = ["RunReport", "write_report"]

_LARGEST = 512  # pixels of a picture in the report
_BLUE, _RED, _GREY, _GREEN = "#1f5fa8", "#b3362b", "#9a9a9a", "#2d7d46"


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a report tells. plan, data: facts as name and text, such as `trained parameters: 57,344`; config: the run's
    configuration file; sheet: samples over the run; notes: warnings from elsewhere, such as the data's; files: what was
    written."""

    facts: RunFacts
    progress: Progress
    log: RunLog
    norms: tuple[GroupNorm, ...] = ()
    pairs: tuple[SamplePair, ...] = ()
    sheet: Image.Image | None = None
    plan: Mapping[str, str] = field(default_factory=dict[str, str])
    data: Mapping[str, str] = field(default_factory=dict[str, str])
    config: str = ""
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def warnings(self) -> tuple[str, ...]:
        """Of the figures, then those from elsewhere."""
        return (*warnings_of(self.log, self.norms, self.pairs), *self.notes)


def write_report(report: RunReport, folder: Path) -> tuple[Path, Path]:
    """report.html and report.json in a folder; what is there is replaced. Raises OSError."""
    html, body = folder / "report.html", folder / "report.json"
    write_whole(html, [_html(report).encode("utf-8", "replace")])
    text = json.dumps(_json(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(body, [text.encode("utf-8", "replace")])
    return html, body


def _html(report: RunReport) -> str:
    environment = Environment(
        loader=PackageLoader("loramux_train.output", "."),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    page = environment.get_template("report.html.jinja")
    largest = max((norm.ratio for norm in report.norms if math.isfinite(norm.ratio)), default=0.0) or 1.0
    return page.render(
        report=report,
        title=report.facts.about.title or report.facts.about.name,
        warnings=report.warnings(),
        outline=_outline(report),
        charts=_charts(report.log),
        width=WIDTH,
        height=HEIGHT,
        largest=largest,
        pairs=[
            (pair, data_uri(pair.without, _LARGEST), data_uri(pair.with_adapter, _LARGEST)) for pair in report.pairs
        ],
        sheet=data_uri(report.sheet, None) if report.sheet is not None else "",
        folders=report.facts.data.folders,
    )


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.3g} %"


def _charts(log: RunLog) -> list[Chart]:
    loss = chart(
        "Loss",
        [
            ("each step", _GREY, True, log.loss),
            ("training, smoothed", _BLUE, False, smoothed(log.loss)),
            ("validation", _RED, False, log.validation),
        ],
    )
    names = (("UNet", _BLUE), ("text encoder", _RED), ("second text encoder", _GREEN))
    rates = chart(
        "Learning rate",
        [
            (*(names[at] if at < len(names) else (f"group {at}", _GREY)), False, series)
            for at, series in enumerate(log.rates)
        ],
    )
    norm = chart("Gradient norm", [("before clipping", _BLUE, False, log.gradient_norm)])
    return [found for found in (loss, rates, norm) if found is not None]


def _outline(report: RunReport) -> dict[str, str]:
    facts, network = report.facts, report.facts.network
    kinds = [name for name, is_so in (("DoRA", network.dora), ("rsLoRA", network.rslora)) if is_so]
    conv = "" if network.conv_rank is None else f"; 3x3 convolutions {network.conv_rank}, {network.conv_alpha:g}"
    found = {
        "base": f"{facts.base.name} ({facts.base.digest[:12]}), {facts.base.prediction}-prediction",
        "rank, alpha": f"{network.rank}, {network.alpha:g}{conv}" + (f" ({', '.join(kinds)})" if kinds else ""),
        "steps": f"{report.progress.step} of {facts.optimiser.max_steps}, epoch {report.progress.epoch}",
        "time": _duration(report.log.seconds),
        "finished": report.progress.at.isoformat(sep=" ", timespec="seconds"),
        "trigger": facts.about.trigger,
        "licence": facts.about.licence,
        "last loss": _last(smoothed(report.log.loss)),
        "validation loss": _last(report.log.validation),
        "written": ", ".join(report.files),
        "by": facts.software,
    }
    return {name: text for name, text in found.items() if text}


def _last(series: Series) -> str:
    if not series.values:
        return ""
    lowest, step = min(zip(series.values, series.steps, strict=True))
    return f"{series.values[-1]:.4g} (lowest {lowest:.4g} at step {step})"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _json(report: RunReport) -> dict[str, Any]:
    """Numbers that are not finite, which JSON has not, are null."""
    found = {
        "run": dataclasses.asdict(report.facts),
        "progress": dataclasses.asdict(report.progress),
        "seconds": report.log.seconds,
        "curves": {
            "loss": dataclasses.asdict(report.log.loss),
            "validation": dataclasses.asdict(report.log.validation),
            "gradient_norm": dataclasses.asdict(report.log.gradient_norm),
            "rates": [dataclasses.asdict(series) for series in report.log.rates],
        },
        "norms": [dataclasses.asdict(norm) for norm in report.norms],
        "samples": [{"prompt": p.prompt, "seed": p.seed, "difference": p.difference()} for p in report.pairs],
        "plan": report.plan,
        "data": report.data,
        "config": report.config,
        "warnings": report.warnings(),
        "files": report.files,
    }
    return _plain(found)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {"x".join(map(str, key)) if isinstance(key, tuple) else str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
