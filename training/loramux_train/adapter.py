"""Adapter files: low-rank factors as the world stores them.

Takes factors by module path; gives safetensors files in kohya's naming (sd-scripts, web UIs) or PEFT's (diffusers), and
reads both back. Knows no model and no training. Neither file ever holds weights of the base.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Naming = Literal["kohya", "peft"]

# kohya's prefix of each part; one text encoder is te, of two the first is te1
_KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}
_KOHYA_FIRST_OF_TWO = "lora_te1_"


@dataclass(frozen=True, slots=True)
class Factors:
    """One module's change: (alpha / rank) * up @ down. Convolutions keep their four dimensions.

    magnitude: of DoRA, the length of each output's changed weights, [outputs] or [1, outputs, 1, 1]; else None.
    """

    down: Tensor
    up: Tensor
    alpha: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return self.down.shape[0]

    def delta(self) -> Tensor:
        """The change as a matrix [out, in]."""
        return (self.alpha / self.rank) * self.up.flatten(1).float() @ self.down.flatten(1).float()


@dataclass(frozen=True, slots=True)
class Adapter:
    """Factors by module path, for each part of the base."""

    unet: dict[str, Factors] = field(default_factory=dict)
    text_encoder: dict[str, Factors] = field(default_factory=dict)
    text_encoder_2: dict[str, Factors] = field(default_factory=dict)

    def parts(self) -> list[tuple[str, dict[str, Factors]]]:
        """The parts by name, empty ones left out."""
        parts = (("unet", self.unet), ("text_encoder", self.text_encoder), ("text_encoder_2", self.text_encoder_2))
        return [(name, factors) for name, factors in parts if factors]


def save_adapter(path: Path, adapter: Adapter, naming: Naming, about: Mapping[str, str], dtype: torch.dtype) -> None:
    """Write the file beside and rename it; scales stay in fp32.

    Raises:
        ValueError: for factors that are not finite or do nothing, or would be so in `dtype`; nothing is written.
    """
    _check(adapter, dtype)
    tensors = _kohya_tensors(adapter) if naming == "kohya" else _peft_tensors(adapter)
    metadata = {**about, "format": "pt"}
    if naming == "peft":
        metadata["lora_adapter_metadata"] = json.dumps(_peft_metadata(adapter), indent=2, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    kept = {name: tensor if name.endswith(".alpha") else tensor.to(dtype) for name, tensor in tensors.items()}
    save_file({name: tensor.contiguous() for name, tensor in kept.items()}, partial, metadata)
    partial.chmod(0o644)
    partial.replace(path)


def load_adapter(path: Path) -> Adapter:
    """Read a file `save_adapter` wrote; module paths of kohya files come back with underscores for dots."""
    with safe_open(path, "pt") as file:
        metadata: dict[str, str] = file.metadata() or {}
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if any(name.endswith(".lora_down.weight") for name in tensors):
        prefixes = _prefixes(any(name.startswith(_KOHYA_FIRST_OF_TWO) for name in tensors))
        return Adapter(**{part: _read_kohya(tensors, prefix) for part, prefix in prefixes.items()})
    config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    return Adapter(**{part: _read_peft(tensors, part, config) for part in _KOHYA})


def _check(adapter: Adapter, dtype: torch.dtype) -> None:
    for part, factors in adapter.parts():
        for path, pair in factors.items():
            for name, tensor in (("A", pair.down), ("B", pair.up), ("magnitude", pair.magnitude)):
                if tensor is None:
                    continue
                if not tensor.isfinite().all():
                    raise ValueError(f"{part}.{path}: not finite; training diverged, nothing was written")
                if not tensor.to(dtype).isfinite().all():
                    raise ValueError(f"{part}.{path}: {name} is too large for {dtype}; write it in fp32")
    ups = [pair.up for _, factors in adapter.parts() for pair in factors.values()]
    if not any(up.any() for up in ups):
        raise ValueError("every up factor is zero: this adapter would change nothing, nothing was written")
    if not any(up.to(dtype).any() for up in ups):
        raise ValueError(f"every up factor is too small for {dtype} and would be zero; write it in fp32")


def _prefixes(two: bool) -> dict[str, str]:
    return _KOHYA | ({"text_encoder": _KOHYA_FIRST_OF_TWO} if two else {})


def _kohya_tensors(adapter: Adapter) -> dict[str, Tensor]:
    prefixes = _prefixes(bool(adapter.text_encoder_2))
    tensors: dict[str, Tensor] = {}
    for part, factors in adapter.parts():
        for path, pair in factors.items():
            name = prefixes[part] + path.replace(".", "_")
            tensors[f"{name}.alpha"] = torch.tensor(float(pair.alpha))
            tensors[f"{name}.lora_down.weight"] = pair.down
            tensors[f"{name}.lora_up.weight"] = pair.up
            if pair.magnitude is not None:  # sd-scripts' shape: one length for each output, dimensions kept
                tensors[f"{name}.dora_scale"] = pair.magnitude.reshape(-1, *(1,) * (pair.down.ndim - 1))
    return tensors


def _peft_tensors(adapter: Adapter) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for part, factors in adapter.parts():
        for path, pair in factors.items():
            tensors[f"{part}.{path}.lora_A.weight"] = pair.down
            tensors[f"{part}.{path}.lora_B.weight"] = pair.up
            if pair.magnitude is not None:
                tensors[f"{part}.{path}.lora_magnitude_vector"] = pair.magnitude
    return tensors


def _peft_metadata(adapter: Adapter) -> dict[str, Any]:
    """What diffusers reads back: each part's LoraConfig, its fields prefixed with the part's name."""
    metadata: dict[str, Any] = {}
    for part, factors in adapter.parts():
        named = {
            path.removeprefix("text_model."): pair for path, pair in factors.items()
        }  # transformers 5 has no such level
        (rank, alpha), _ = Counter((pair.rank, pair.alpha) for pair in named.values()).most_common(1)[0]
        fields: dict[str, Any] = {
            "r": rank,
            "lora_alpha": alpha,
            "peft_type": "LORA",
            "target_modules": sorted(named),
        }
        ranks = {path: pair.rank for path, pair in named.items() if pair.rank != rank}
        alphas = {path: pair.alpha for path, pair in named.items() if pair.alpha != alpha}
        fields |= ({"rank_pattern": ranks} if ranks else {}) | ({"alpha_pattern": alphas} if alphas else {})
        if any(pair.magnitude is not None for pair in named.values()):
            fields["use_dora"] = True
        metadata |= {f"{part}.{key}": value for key, value in fields.items()}
    return metadata


def _read_kohya(tensors: dict[str, Tensor], prefix: str) -> dict[str, Factors]:
    names = [name.removesuffix(".alpha") for name in tensors if name.startswith(prefix) and name.endswith(".alpha")]
    return {
        name.removeprefix(prefix): Factors(
            tensors[f"{name}.lora_down.weight"],
            tensors[f"{name}.lora_up.weight"],
            float(tensors[f"{name}.alpha"]),
            tensors.get(f"{name}.dora_scale"),
        )
        for name in names
    }


def _read_peft(tensors: dict[str, Tensor], part: str, config: dict[str, Any]) -> dict[str, Factors]:
    ending = ".lora_A.weight"
    names = [name.removesuffix(ending) for name in tensors if name.startswith(f"{part}.") and name.endswith(ending)]
    alphas: dict[str, float] = config.get(f"{part}.alpha_pattern", {})
    factors: dict[str, Factors] = {}
    for name in names:
        down, path = tensors[name + ending], name.removeprefix(f"{part}.")
        general = config.get(f"{part}.lora_alpha", down.shape[0])
        alpha = float(alphas.get(path.removeprefix("text_model."), general))
        magnitude = tensors.get(f"{name}.lora_magnitude_vector")
        factors[path] = Factors(down, tensors[f"{name}.lora_B.weight"], alpha, magnitude)
    return factors
