"""What each module's delta is multiplied by.

Takes the modules, the file's scalars and the interpretation options; gives (alpha, scale) for each
module and warnings. An alpha of 0 is taken literally. Knows no factors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from loramux_store.errors import InvalidArgument, Refused
from loramux_store.formats.naming import spellings
from loramux_store.formats.peft_config import PeftConfig, parse_config, parse_metadata
from loramux_store.formats.read import RawModule
from loramux_store.formats.scalar import peek_scalar, read_scalar
from loramux_store.record import InterpretOptions

__all__ = ["OUTLIER", "Scaling"]

OUTLIER = 16.0
_METADATA_KEY = "lora_adapter_metadata"
_DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?\Z")
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

    @property
    def beside(self) -> str:
        """What a config says that the file holds other than deltas."""
        configs = filter(None, (self.given, *self.stored.values()))
        return next((config.beside for config in configs if config.beside), "")

    def of(self, handle: BinaryIO, raw: RawModule, path: str) -> tuple[float, float]:
        """(alpha, scale) of a module at a layout path."""
        alpha, scale = self._of(handle, raw, path)
        if abs(scale) > _FLOAT32_MAX or abs(alpha) > _FLOAT32_MAX:
            said = raw.tensors.get("scale") or raw.tensors.get("alpha")
            raise Refused(
                "alpha_non_finite",
                f"{path}: alpha {alpha}, scale {scale} is outside float32",
                {"module": path, "key": said.name if said else path, "got": str(alpha)},
            )
        if scale == 0:
            self._warn("alpha_zero", f"{path} is scaled by 0")
        if abs(scale) > OUTLIER:
            self._warn("scale_outlier", f"{path} is scaled by {scale:g}")
        return alpha, scale

    def finish(self, *, decomposed: bool) -> tuple[str, ...]:
        """All warnings, also of options that nothing used; decomposed: whether any module has magnitudes."""
        configs = filter(None, (self.given, *self.stored.values()))
        if not decomposed and any(config.use_dora for config in configs):
            self._warn("dora_without_magnitudes", "the config says use_dora, the file has no magnitudes")
        if self.given and not self._config_used:
            self._warn("peft_config_unused", "no module takes its scale from the config given")
        if self.options.alpha is not None and not self._alpha_used:
            self._warn("alpha_unused", "every module says its own alpha")
        return tuple(f"{code}: {text}" for code, text in self.warnings.items())

    def _of(self, handle: BinaryIO, raw: RawModule, path: str) -> tuple[float, float]:
        rank = raw.rank
        if raw.kind in ("norm", "bias"):
            return 1.0, 1.0
        if entry := raw.tensors.get("scale"):
            scale = read_scalar(handle, entry, path)
            return scale * (rank or 1), scale
        if raw.kind == "full":
            return 1.0, 1.0
        if rank is None:
            return self._whole(handle, raw, path)
        if entry := raw.tensors.get("alpha"):
            alpha = read_scalar(handle, entry, path)
            return alpha, alpha / rank
        config = self._config(path)
        inside = spellings(path.partition(".")[2])
        alpha = config.alpha(*inside) if config else None
        if config and alpha is not None:
            claimed = config.rank(*inside)
            # a PEFT LoKr of a small layer has the rank of its smaller side
            if claimed is not None and claimed != rank and raw.kind != "lokr":
                self._warn(
                    "config_contradicts_shapes",
                    f"{path} has rank {rank}, its config says {claimed:g}; the shapes win",
                )
            return alpha, alpha / (math.sqrt(rank) if config.use_rslora else rank)
        return self._unsaid(raw, rank, path)

    def _whole(self, handle: BinaryIO, raw: RawModule, path: str) -> tuple[float, float]:
        """A Kronecker product of two whole sides, which have no rank: alpha / r where a PEFT config says so, else the
        alpha of the options, else 1 as LyCORIS has it, whatever alpha the file says. A config in the file counts only
        where the module says none."""
        entry = raw.tensors.get("alpha")
        config = self._config(path) if entry is None or self.given else None
        inside = spellings(path.partition(".")[2])
        alpha, rank = (config.alpha(*inside), config.rank(*inside)) if config else (None, None)
        if alpha is not None and rank:
            return alpha, alpha / rank
        if self.options.alpha is not None:
            self._alpha_used = True
            return self.options.alpha, self.options.alpha
        if entry is not None:
            self._warn_of_ambiguity(peek_scalar(handle, entry, path), path)
        return 1.0, 1.0

    def _warn_of_ambiguity(self, alpha: float, path: str) -> None:
        """Alpha may be anything, even infinite: LyCORIS users set dimensions beyond float16."""
        dim = self.metadata.get("ss_network_dim", "")
        if math.isfinite(alpha) and _DECIMAL.match(dim) and float(dim) != alpha:
            self._warn(
                "lokr_scale_ambiguous",
                f"{path} has whole sides, alpha {alpha:g} and ss_network_dim {dim[:40]}; its scale is taken as 1. "
                "Push it with an alpha to have that as the scale: the one over the other, if that was meant",
            )

    def _config(self, path: str) -> PeftConfig | None:
        if self.given:
            self._config_used = True
            return self.given
        return self.stored.get(path.partition(".")[0]) or self.stored.get("")

    def _unsaid(self, raw: RawModule, rank: int, path: str) -> tuple[float, float]:
        if self.options.alpha is not None:
            self._alpha_used = True
            alpha = self.options.alpha
        elif raw.family != "kohya" and (text := self.metadata.get("alpha")):
            alpha = self._from_metadata(text, path)
        else:
            if raw.family in ("peft", "lycoris"):
                self._warn("alpha_assumed", f"{path} says no alpha; assumed is its rank")
            alpha = float(rank)
        return alpha, alpha / rank

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
