"""The whole state of a run as one value.

Takes a training; gives tensors and numbers, and puts them back. A run that goes on from its snapshot ends with the bits
of a run that never stopped. Knows no file.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loramux_train.best import Best
from loramux_train.errors import CannotResume
from loramux_train.training import Training

_SET = ("peak", "lr", "weight_decay", "betas")
"""Of an optimiser's groups, what settings say, also of a run that goes on; the rest is its own."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """step: steps done; tensors: factors/, average/, best/ and optimiser/, on the CPU; numbers: what JSON can hold."""

    step: int
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


def take(training: Training, best: Best) -> Snapshot:
    """The state between two steps. Generators have none: what is random is drawn from the seed and the position."""
    tensors = {f"factors/{name}": value for name, value in training.parameters.items()}
    if training.average is not None:
        tensors |= {f"average/{name}": value for name, value in training.average.values.items()}
    tensors |= {f"best/{name}": value for name, value in best.values.items()}
    optimiser: dict[str, Any] = training.optimiser.state_dict()
    state = {str(index): _without(held, f"optimiser/{index}", tensors) for index, held in optimiser["state"].items()}
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimiser["param_groups"]]
    numbers = {"best": {"loss": best.loss, "step": best.step, "since": best.since}, "state": state, "groups": groups}
    scaler = training.scaler
    if scaler is not None:
        numbers["scaler"] = scaler.state_dict()
    return Snapshot(training.done, {name: _copied(value) for name, value in tensors.items()}, numbers)


@torch.no_grad()
def restore(training: Training, best: Best, snapshot: Snapshot) -> None:
    """Bring a training, made by the same settings, to where the snapshot was taken.

    Raises:
        CannotResume: where the snapshot has other factors; names one.
    """
    _put(training.parameters, snapshot, "factors")
    if training.average is not None:
        _put(training.average.values, snapshot, "average")
    kept = {name: value for name, value in snapshot.tensors.items() if name.startswith("best/")}
    best.values = {name.removeprefix("best/"): value.clone() for name, value in kept.items()}
    known = snapshot.numbers["best"]
    best.loss, best.step, best.since = known["loss"], known["step"], known["since"]
    _restore_optimiser(training.optimiser, snapshot)
    if training.scaler is not None and "scaler" in snapshot.numbers:
        training.scaler.load_state_dict(snapshot.numbers["scaler"])
    training.done = snapshot.step


def _restore_optimiser(optimiser: Any, snapshot: Snapshot) -> None:
    now: dict[str, Any] = optimiser.state_dict()
    state = {int(index): _with(held, snapshot.tensors) for index, held in snapshot.numbers["state"].items()}
    groups = [
        saved | {"params": group["params"]} | {key: group[key] for key in _SET if key in group}
        for saved, group in zip(snapshot.numbers["groups"], now["param_groups"], strict=True)
    ]
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def _put(into: dict[str, Any], snapshot: Snapshot, kind: str) -> None:
    found = {n.removeprefix(f"{kind}/"): t for n, t in snapshot.tensors.items() if n.startswith(f"{kind}/")}
    for name in sorted(into.keys() | found.keys()):
        here, there = (None if held is None else list(held.shape) for held in (into.get(name), found.get(name)))
        if here != there:
            raise CannotResume(f"the checkpoint's {kind} {name} is {there or 'not there'}, expected {here or 'none'}")
    for name, value in found.items():
        into[name].copy_(value)


def _without(held: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """A state with names for its tensors, which go to `tensors`."""
    if isinstance(held, Tensor):
        tensors[place] = held
        return {"tensor": place}
    if isinstance(held, dict):
        items: dict[str, Any] = held
        return {key: _without(value, f"{place}/{key}", tensors) for key, value in items.items()}
    return held


def _with(held: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(held, dict):
        return held
    items: dict[str, Any] = held
    if items.keys() == {"tensor"}:
        return tensors[items["tensor"]].clone()
    return {key: _with(value, tensors) for key, value in items.items()}


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone().contiguous()
