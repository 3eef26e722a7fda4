"""What each module's B A is multiplied by.

Takes the modules, the file's scalars and the interpretation options; gives (alpha, scale) for each
module and warnings. An alpha of 0 is taken literally. Knows no factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from loramux_store.errors import InvalidArgument, Refused
from loramux_store.formats.naming import spellings
from loramux_store.formats.peft_config import PeftConfig, parse_config, parse_metadata
from loramux_store.formats.read import RawModule
from loramux_store.formats.scalar import read_scalar
from loramux_store.record import InterpretOptions

__all__ = ["OUTLIER", "Scaling"]

OUTLIER = 16.0
_METADATA_KEY = "lora_adapter_metadata"
_FLOAT32_MAX = 3.4028234663852886e38


@dataclass(slots=True)
class Scaling:
    """The scales of one file; collects warnings while it is asked."""

    options: InterpretOptions
    metadata: Mapping[str, str]
    given: PeftConfig | None = None
    stored: Mapping[str, PeftConfig] = field(default_factory=dict[str, PeftConfig])
    warnings: dict[str, str] = field(default_factory=dict[str, str])
    _config_used: bool = False
    _alpha_used: bool = False

    def __post_init__(self) -> None:
        """Parse the configs that there are."""
        if self.options.peft_config is not None:
            self.given = parse_config(self.options.peft_config)
        if text := self.metadata.get(_METADATA_KEY):
            self.stored = self._parse_stored(text)
        for config in (self.given, *self.stored.values()):
            for warning in config.warnings if config else ():
                self._warn(*warning.split(": ", 1))

    def of(self, handle: BinaryIO, raw: RawModule, path: str) -> tuple[float, float]:
        """(alpha, scale) of a module at a layout path."""
        alpha, scale = self._of(handle, raw, path)
        if abs(scale) > _FLOAT32_MAX or abs(alpha) > _FLOAT32_MAX:
            raise Refused(
                "alpha_non_finite",
                f"{path}: alpha {alpha} over rank {raw.rank} is outside float32",
                {"module": path, "got": str(alpha)},
            )
        if scale == 0:
            self._warn("alpha_zero", f"{path} is scaled by 0")
        if abs(scale) > OUTLIER:
            self._warn("scale_outlier", f"{path} is scaled by {scale:g}")
        return alpha, scale

    def finish(self) -> tuple[str, ...]:
        """All warnings, also of options that nothing used."""
        if self.given and not self._config_used:
            self._warn("peft_config_unused", "no module takes its scale from the config given")
        if self.options.alpha is not None and not self._alpha_used:
            self._warn("alpha_unused", "every module says its own alpha")
        return tuple(f"{code}: {text}" for code, text in self.warnings.items())

    def _of(self, handle: BinaryIO, raw: RawModule, path: str) -> tuple[float, float]:
        rank = raw.rank
        if entry := raw.tensors.get("scale"):
            scale = read_scalar(handle, entry, path)
            return scale * rank, scale
        if entry := raw.tensors.get("alpha"):
            alpha = read_scalar(handle, entry, path)
            return alpha, alpha / rank
        config = self._config(path) if raw.family == "peft" else None
        inside = spellings(path.partition(".")[2])
        alpha = config.alpha(*inside) if config else None
        if config and alpha is not None:
            claimed = config.rank(*inside)
            if claimed is not None and claimed != rank:
                self._warn(
                    "config_contradicts_shapes",
                    f"{path} has rank {rank}, its config says {claimed:g}; the shapes win",
                )
            return alpha, alpha / (math.sqrt(rank) if config.use_rslora else rank)
        return self._unsaid(raw, path)

    def _config(self, path: str) -> PeftConfig | None:
        if self.given:
            self._config_used = True
            return self.given
        return self.stored.get(path.partition(".")[0]) or self.stored.get("")

    def _unsaid(self, raw: RawModule, path: str) -> tuple[float, float]:
        if self.options.alpha is not None:
            self._alpha_used = True
            alpha = self.options.alpha
        elif raw.family != "kohya" and (text := self.metadata.get("alpha")):
            alpha = self._from_metadata(text, path)
        else:
            if raw.family == "peft":
                self._warn("alpha_assumed", f"{path} says no alpha; assumed is its rank")
            alpha = float(raw.rank)
        return alpha, alpha / raw.rank

    def _from_metadata(self, text: str, path: str) -> float:
        try:
            alpha = float(text)
        except ValueError:
            alpha = math.nan
        if not math.isfinite(alpha):
            raise Refused(
                "alpha_non_finite",
                f"the metadata says alpha {text[:40]!r}",
                {"module": path, "key": "__metadata__.alpha", "got": text[:40]},
            )
        self._warn("alpha_from_metadata", f"alpha {alpha:g} is said in the file's metadata only")
        return alpha

    def _parse_stored(self, text: str) -> Mapping[str, PeftConfig]:
        try:
            return parse_metadata(text)
        except InvalidArgument as error:
            raise Refused(
                "adapter_config_invalid",
                f"the metadata's {_METADATA_KEY}: {error.message}",
                {"key": _METADATA_KEY, "value": str(error.value), "expected": error.expected},
            ) from None

    def _warn(self, code: str, text: str) -> None:
        """Once a code: a file of 800 modules has one habit, not 800."""
        if code in self.warnings:
            first = self.warnings[code]
            if not first.endswith("(and others)"):
                self.warnings[code] = f"{first} (and others)"
        else:
            self.warnings[code] = text
