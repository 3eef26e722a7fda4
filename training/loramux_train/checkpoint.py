"""Checkpoints on disk: snapshots of a run, whole or not there.

Takes snapshots with the settings they were made by; gives files, written beside, synced and renamed, and reads them
back. Only safetensors: nothing is unpickled. Knows no training.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from loramux_train.errors import CannotResume
from loramux_train.output.atomic import write_whole
from loramux_train.snapshot import Snapshot

_MARK = "loramux_train.checkpoint"
_FORM = 1
_NAME = re.compile(r"step-(\d{8})\.safetensors")

MUST_MATCH = (
    "base", "adapter", "targets", "tokens.new", "tokens.alone", "optimiser.name", "run.seed", "run.accumulation"
)  # fmt: skip
"""Settings by which the numbers of a checkpoint mean what they do; all others may change when a run goes on."""


def write(folder: Path, snapshot: Snapshot, settings: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint, then remove those before it but the newest `keep`, itself among them. OSError as of the disk;
    nothing is removed then."""
    path = folder / f"step-{snapshot.step:08}.safetensors"
    told = {"form": _FORM, "step": snapshot.step, "numbers": snapshot.numbers, "settings": settings}
    write_whole(path, [save(snapshot.tensors, {_MARK: json.dumps(told)})])
    for old in [each for each in every(folder) if each <= path][:-keep]:
        old.unlink()
    return path


def drop_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps, since the run goes on from this one and they are not of that course; and
    what a kill left half-written."""
    for draft in folder.glob(".step-*.part"):
        draft.unlink()
    for path in every(folder):
        if step_of(path) > step:
            path.unlink()


def every(folder: Path) -> list[Path]:
    """The whole checkpoints of a folder, oldest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if _NAME.fullmatch(path.name))


def step_of(path: Path) -> int:
    """The step of a checkpoint, by its name."""
    return int(path.stem.removeprefix("step-"))


def read(path: Path) -> tuple[Snapshot, dict[str, Any]]:
    """A checkpoint and the settings it was made by.

    Raises:
        CannotResume: for anything else, an adapter of weights alone among it; names the states there are.
    """
    try:
        with safe_open(path, "pt") as file:
            told = (file.metadata() or {}).get(_MARK)
            if told is None:
                raise CannotResume(f"{path} is no checkpoint: it holds weights alone, from which no run can go on as "
                                   f"if it had not stopped. {_states(path)}")  # fmt: skip
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CannotResume(f"{path} cannot be read as a checkpoint ({error}). {_states(path)}") from error
    known = json.loads(told)
    if known["form"] != _FORM:
        raise CannotResume(f"{path} is a checkpoint of form {known['form']}, expected {_FORM}")
    return Snapshot(known["step"], tensors, known["numbers"]), known["settings"]


def check_same(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises CannotResume where settings differ by which a checkpoint's numbers mean what they do; names them."""
    differing = [line for name, line in differences(then, now) if _within(name, MUST_MATCH)]
    if differing:
        raise CannotResume("the checkpoint was made by other settings: " + "; ".join(differing))


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str]]:
    """Dotted names of settings that differ, and a sentence for each."""
    old, new = dict(_flat(then)), dict(_flat(now))
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return [(name, f"{name} was {_shown(old.get(name))}, is now {_shown(new.get(name))}") for name in names]


def _flat(settings: dict[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            inner: dict[str, Any] = value
            yield from _flat(inner, f"{before}{key}.")
        elif value is not None:
            yield f"{before}{key}", value


def _within(name: str, sections: Iterable[str]) -> bool:
    return any(name == section or name.startswith(f"{section}.") for section in sections)


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)


def _states(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    found = every(folder) or every(folder / "checkpoints")
    if not found:
        return f"There are no checkpoints in {folder}"
    return "Checkpoints here: " + ", ".join(str(each) for each in found)
