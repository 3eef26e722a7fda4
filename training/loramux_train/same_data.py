"""Whether a run goes on with the data that it began with, and is measured as before.

Takes what a checkpoint says of its settings and pictures, and what there is now; names what differs. Opens nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from loramux_train.checkpoint import differences
from loramux_train.errors import CannotResume

_SHOWN = 5
_NO_MATTER = ("folders", "prior.folder", "prior.prompt", "prior.count", "cache", "skip_broken")


def check_same_data(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """then, now: the settings with `data_set`, of fingerprint and pictures.

    Raises:
        CannotResume: where batches would be others; names settings and pictures.
    """
    if then["data_set"]["fingerprint"] == now["data_set"]["fingerprint"]:
        return
    settings = differences(then["data"], now["data"])
    said = [f"data.{line}" for name, line in settings if not name.startswith(_NO_MATTER)]
    said += _pictures(then["data_set"]["pictures"], now["data_set"]["pictures"])
    raise CannotResume(
        f"the data is not what the checkpoint was made with: {'; '.join(said) or 'the order of pictures is another'}. "
        "Undo that, or go on with --changed-data"
    )


def measure_of(told: Mapping[str, Any]) -> str:
    """What validation losses are measured by, in short: of two that differ in it, neither is the better. told: as of
    `check_same_data`."""
    run: Mapping[str, Any] = told["run"]
    decides = [told["data_set"]["fingerprint"], told.get("loss"), run["validation_draws"], run["precision"]]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]


def _pictures(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    both = then.keys() & now.keys()
    kinds = {
        "new": sorted(now.keys() - then.keys()),
        "gone": sorted(then.keys() - now.keys()),
        "changed, or their captions": sorted(name for name in both if then[name] != now[name]),
    }
    return [f"pictures {what}: {_named(names)}" for what, names in kinds.items() if names]


def _named(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
