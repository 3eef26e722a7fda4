"""PEFT's adapter_config.json: what it says about scales.

Takes the text (an upload option, or what diffusers writes into a file's metadata); gives a
PeftConfig that knows alpha for a module path, or InvalidArgument. Knows no tensors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from loramux_store.errors import InvalidArgument, Refused
from loramux_store.layout import COMPONENTS

__all__ = ["PeftConfig", "parse_config", "parse_metadata"]

_MAX_TEXT = 4 << 20
_PARTS = frozenset((*COMPONENTS, ""))
_FIELD = "options.peft_config"
# Initialisations that also change the base weights: the adapter alone is not what was trained.
_MUTATING = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Fields that change what the tensors are applied to, or how.
_REFUSED = (
    "layer_replication", "trainable_token_indices", "target_parameters", "use_qalora", "use_bdlora",
    "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config", "monteclora_config",
)  # fmt: skip
_LITERAL = re.compile(r"\^?(?:[A-Za-z0-9_\-]|\\?\.)+\Z")
# Characters, classes, alternatives and groups with at most two open repeats: no pattern that backtracks
# for longer than a module name is long, squared, times the ways through its groups; and so many of them that an SDXL
# file of 1,400 modules takes a second at worst.
_MAX_REPEATS = 32
_MAX_KEY = 256  # characters of a pattern
_GROUP = re.compile(r"\((?:\?:)?([^()]*)\)(?![*+?{])")
"""Within none and without a repeat behind it. Each multiplies the ways to read a pattern by its alternatives."""
_TAME = re.compile(r"\^?(?:[A-Za-z0-9_\-.|]|\\[.dw]|\[[A-Za-z0-9_\-.]+\]|[*+?])+\Z")


@dataclass(frozen=True, slots=True)
class _Patterns:
    """PEFT matches `(.*\\.)?(key)$` and takes the first key in order."""

    literal: Mapping[str, tuple[int, float]]
    anchored: Mapping[str, tuple[int, float]]
    regexes: tuple[tuple[int, re.Pattern[str], float], ...]

    def get(self, *spellings: str) -> float | None:
        found: list[tuple[int, float]] = []
        for path in spellings:
            parts = path.split(".")
            tails = (".".join(parts[at:]) for at in range(len(parts)))
            found += [self.literal[tail] for tail in tails if tail in self.literal]
            if path in self.anchored:
                found.append(self.anchored[path])
            found += [(order, value) for order, rule, value in self.regexes if rule.match(path)]
        return min(found)[1] if found else None


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """rank and alpha of a module: patterns first, then the defaults."""

    r: float | None
    lora_alpha: float | None
    use_rslora: bool
    use_dora: bool
    ranks: _Patterns
    alphas: _Patterns
    warnings: tuple[str, ...] = field(default=())
    beside: str = ""
    """What the file also holds by it, other than deltas: modules_to_save, bias_all or bias_lora_only."""

    def alpha(self, *spellings: str) -> float | None:
        """Alpha of a module, by its path inside the component, in each way that is written."""
        found = self.alphas.get(*spellings)
        return self.lora_alpha if found is None else found

    def rank(self, *spellings: str) -> float | None:
        """The rank the config claims for a module."""
        found = self.ranks.get(*spellings)
        return self.r if found is None else found


def parse_config(text: str) -> PeftConfig:
    """An adapter_config.json."""
    return _config(_load(text))


def parse_metadata(text: str) -> dict[str, PeftConfig]:
    """The `lora_adapter_metadata` of a file: one config a component, keys `unet.r` and so on, or one without component,
    which diffusers writes for a model by itself. Other components than a layout has do not count."""
    parts: dict[str, dict[str, Any]] = {}
    for key, value in _load(text).items():
        component, _, name = key.rpartition(".")
        if component in _PARTS:
            parts.setdefault(component, {})[name] = value
    return {component: _config(body) for component, body in parts.items()}


def _load(text: str) -> dict[str, Any]:
    if len(text) > _MAX_TEXT:
        raise InvalidArgument(_FIELD, f"{len(text)} characters", f"at most {_MAX_TEXT}")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidArgument(_FIELD, text[:80], "a JSON object") from None
    if not isinstance(body, dict):
        raise InvalidArgument(_FIELD, text[:80], "a JSON object")
    return cast(dict[str, Any], body)


def _config(body: Mapping[str, Any]) -> PeftConfig:
    _refuse_kinds(body)
    warnings = () if not body.get("fan_in_fan_out") else ("fan_in_fan_out: has no effect here",)
    return PeftConfig(
        _number(body, "r"),
        # LoHa and LoKr call it alpha
        _number(body, "lora_alpha" if "lora_alpha" in body else "alpha"),
        _flag(body, "use_rslora"),
        _flag(body, "use_dora"),
        _patterns(body, "rank_pattern"),
        _patterns(body, "alpha_pattern"),
        warnings,
        _beside(body),
    )


def _refuse_kinds(body: Mapping[str, Any]) -> None:
    kind = body.get("peft_type", "LORA")
    if not isinstance(kind, str) or kind.upper() not in ("LORA", "LOHA", "LOKR"):
        raise _unsupported(str(kind).lower()[:40], "peft_type")
    for name in _REFUSED:
        if body.get(name):
            raise _unsupported(name.removeprefix("use_").removesuffix("_config"), name)
    start = body.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MUTATING):
        raise _unsupported(start.lower()[:40], "init_lora_weights")


def _beside(body: Mapping[str, Any]) -> str:
    if body.get("modules_to_save"):
        return "modules_to_save"
    bias = body.get("bias")
    return f"bias_{bias}" if bias in ("all", "lora_only") else ""


def _unsupported(kind: str, field: str) -> Refused:
    return Refused(
        f"unsupported_kind:{kind}",
        f"adapter_config {field} says {kind}: it is not accepted",
        {"key": field, "kind": kind},
    )


def _number(body: Mapping[str, Any], name: str) -> float | None:
    value = body.get(name)
    return None if value is None else _finite(name, value)


def _finite(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgument(f"{_FIELD}.{name}", value, "a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidArgument(f"{_FIELD}.{name}", value, "a finite number")
    return number


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if value not in (True, False, None):
        raise InvalidArgument(f"{_FIELD}.{name}", value, "true or false")
    return bool(value)


def _patterns(body: Mapping[str, Any], name: str) -> _Patterns:
    table = body.get(name) or {}
    if not isinstance(table, dict):
        raise InvalidArgument(f"{_FIELD}.{name}", table, "an object")
    literal: dict[str, tuple[int, float]] = {}
    anchored: dict[str, tuple[int, float]] = {}
    regexes: list[tuple[int, re.Pattern[str], float]] = []
    for order, (key, found) in enumerate(cast(dict[str, Any], table).items()):
        value = _finite(f"{name}.{key}", found)
        if _LITERAL.match(key):
            plain = key.removeprefix("^").replace("\\", "")
            target = anchored if key.startswith("^") else literal
            target.setdefault(plain, (order, value))
        else:
            regexes.append((order, _regex(f"{name}.{key}", key), value))
    cost = sum(_cost(key) for key in table if not _LITERAL.match(key))
    if len(regexes) > 64 or cost > _MAX_REPEATS:
        found = f"{len(regexes)} patterns with {cost} of * + ? and |"
        most = (
            f"at most 64 patterns, with at most {_MAX_REPEATS} of * + ?, counted for each alternative of their groups"
        )
        raise InvalidArgument(f"{_FIELD}.{name}", found, most)
    return _Patterns(literal, anchored, tuple(regexes))


def _regex(field: str, key: str) -> re.Pattern[str]:
    flat = _flat(key[:_MAX_KEY])
    if len(key) > _MAX_KEY or _repeats(flat) > 2 or _cost(key) > _MAX_REPEATS or not _TAME.match(flat):
        expected = "names, '.', classes, groups without * + ? behind them, and at most two of * + ?"
        raise InvalidArgument(f"{_FIELD}.{field}", key, expected)
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except re.error:
        raise InvalidArgument(f"{_FIELD}.{field}", key, "a regular expression") from None


def _flat(key: str) -> str:
    """A pattern without the brackets of its groups."""
    return _GROUP.sub(r"\1", key)


def _cost(key: str) -> int:
    """Ways to read a pattern, times its repeats; without groups its repeats."""
    ways = math.prod(1 + body.count("|") for body in _GROUP.findall(key))
    return ways * (1 + _repeats(_flat(key))) - 1


def _repeats(pattern: str) -> int:
    return sum(pattern.count(sign) for sign in "*+?")
