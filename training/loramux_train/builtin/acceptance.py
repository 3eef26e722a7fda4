"""The acceptance run: every judgement of what ships, in one results file.

Takes the built-in folder; gives `card/results.json`, one entry for the base and one for each adapter, with its bars,
whether they hold, and the command and the machine. Knows no measure itself: `evaluate` has them.
"""

import json
import operator
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loramux_train.builtin.adapters import BUILTIN_ADAPTERS, BuiltinAdapter, sepia
from loramux_train.builtin.applied import factors_in
from loramux_train.builtin.concepts import HELD_OUT, STYLES, WHITE
from loramux_train.builtin.drawing import load_parts
from loramux_train.builtin.evaluate import Result, judge_base, judge_style, judge_subject, judge_treatment
from loramux_train.builtin.export import folder_size
from loramux_train.builtin.pictures import place, to_array
from loramux_train.builtin.subject import zib_pictures

_COMPARE: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}


def judge(out: Path, names: Sequence[str] = ()) -> Result:
    """Measure what is named (everything if nothing is) and fold it into the results file."""
    file = out / "card" / "results.json"
    results: Result = json.loads(file.read_text()) if file.exists() else {}
    if not names or "base" in names:
        results["base"] = {
            "bytes": folder_size(out / "base"),
            **_timed(judge_base, load_parts(out / "base"), _real(out)),
        }
    for built in BUILTIN_ADAPTERS:
        if not names or built.name in names:
            results[built.name] = _timed(judge_adapter, out, built)
            print(built.name, json.dumps(results[built.name]), flush=True)
    results["how"] = {
        "command": "python -m loramux_train.builtin judge --out server/loramux_server/builtin",
        "sampling": "DPM++ 2M, 20 steps, guidance 3, 64x64, fp32",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    results["holds"] = not list(broken_bars(results))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=2) + "\n")
    return results


def judge_adapter(out: Path, built: BuiltinAdapter) -> Result:
    """One adapter by the measure that fits it."""
    parts, file = load_parts(out / "base"), out / built.folder / f"{built.name}.safetensors"
    first = factors_in(file, parts)[0]
    about: Result = {"rank": first.rank, "alpha": first.scale * first.rank, "bytes": file.stat().st_size}
    about["subjects_held_out"] = not built.trigger and not set(HELD_OUT) & set(built.sees)
    if built.name == "sepia":
        return about | judge_treatment(parts, file, sepia)
    if built.trigger:
        poses = np.stack([to_array(place(picture, WHITE)) for picture in zib_pictures()])
        return about | judge_subject(parts, file, torch.from_numpy(poses), built.trigger, _real(out))
    style = {style.name: style for style in STYLES}[built.name]
    return about | judge_style(parts, file, style, _real(out))


def broken_bars(results: Result) -> Iterator[str]:
    """Every bar a result misses, as "entry.name value bar"."""
    for entry, values in results.items():
        if not isinstance(values, dict):
            continue
        for name, bar in [(n.removesuffix("_bar"), b) for n, b in values.items() if n.endswith("_bar")]:
            numbers = values[name].values() if isinstance(values[name], dict) else [values[name]]
            yield from (f"{entry}.{name} {number} {bar}" for number in numbers if not _holds(number, bar))
        if values.get("monotone") is False:
            yield f"{entry}.monotone"


def _holds(number: float, bar: str) -> bool:
    sign, bound = re.fullmatch(r"([<>]=)(.+)", bar).groups()  # type: ignore[union-attr]
    return _COMPARE[sign](number, float(bound))


def _timed(call: Callable[..., Result], *arguments: Any) -> Result:
    started = time.monotonic()
    return call(*arguments) | {"judged_in_seconds": round(time.monotonic() - started, 1)}


def _real(out: Path) -> Path:
    return out / "card" / "real"
