"""Adapter files: low-rank factors as the world stores them.

Takes factors by module path; gives safetensors files in kohya's naming (sd-scripts, web UIs) or PEFT's (diffusers), and
reads both back. Knows no model and no training. Neither file ever holds weights of the base.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Naming = Literal["kohya", "peft"]

# kohya's prefix of each part
_KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}


@dataclass(frozen=True, slots=True)
class Factors:
    """One module's change: (alpha / rank) * up @ down. 1x1 convolutions keep their two trailing ones."""

    down: Tensor
    up: Tensor
    alpha: float

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

    def parts(self) -> list[tuple[str, dict[str, Factors]]]:
        """The parts by name, empty ones left out."""
        return [(n, p) for n, p in (("unet", self.unet), ("text_encoder", self.text_encoder)) if p]


def save_adapter(path: Path, adapter: Adapter, naming: Naming, about: Mapping[str, str], dtype: torch.dtype) -> None:
    """Write the file beside and rename it. Refuses factors that are not finite or that do nothing."""
    _check(adapter)
    tensors = _kohya_tensors(adapter) if naming == "kohya" else _peft_tensors(adapter)
    metadata = {**about, "format": "pt"}
    if naming == "peft":
        metadata["lora_adapter_metadata"] = json.dumps(_peft_metadata(adapter), indent=2, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, partial, metadata)
    partial.chmod(0o644)
    partial.replace(path)


def load_adapter(path: Path) -> Adapter:
    """Read a file `save_adapter` wrote; module paths of kohya files come back with underscores for dots."""
    with safe_open(path, "pt") as file:
        metadata: dict[str, str] = file.metadata() or {}
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if any(name.startswith(tuple(_KOHYA.values())) for name in tensors):
        return Adapter(**{part: _read_kohya(tensors, prefix) for part, prefix in _KOHYA.items()})
    config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    return Adapter(**{part: _read_peft(tensors, part, config) for part in _KOHYA})


def _check(adapter: Adapter) -> None:
    for part, factors in adapter.parts():
        for path, pair in factors.items():
            if not (pair.down.isfinite().all() and pair.up.isfinite().all()):
                raise ValueError(f"{part}.{path}: not finite; training diverged, nothing was written")
    if not any(pair.up.any() for _, factors in adapter.parts() for pair in factors.values()):
        raise ValueError("every up factor is zero: this adapter would change nothing, nothing was written")


def _kohya_tensors(adapter: Adapter) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for part, factors in adapter.parts():
        for path, pair in factors.items():
            name = _KOHYA[part] + path.replace(".", "_")
            tensors[f"{name}.alpha"] = torch.tensor(float(pair.alpha))
            tensors[f"{name}.lora_down.weight"] = pair.down
            tensors[f"{name}.lora_up.weight"] = pair.up
    return tensors


def _peft_tensors(adapter: Adapter) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for part, factors in adapter.parts():
        for path, pair in factors.items():
            tensors[f"{part}.{path}.lora_A.weight"] = pair.down
            tensors[f"{part}.{path}.lora_B.weight"] = pair.up
    return tensors


def _peft_metadata(adapter: Adapter) -> dict[str, Any]:
    """What diffusers reads back: each part's LoraConfig, its fields prefixed with the part's name."""
    metadata: dict[str, Any] = {}
    for part, factors in adapter.parts():
        pairs = {(pair.rank, pair.alpha) for pair in factors.values()}
        if len(pairs) != 1:
            raise ValueError(f"{part}: PEFT files are written with one rank and alpha, found {sorted(pairs)}")
        rank, alpha = pairs.pop()
        targets = sorted(path.removeprefix("text_model.") for path in factors)  # a level transformers 5 dropped
        fields = {"r": rank, "lora_alpha": alpha, "peft_type": "LORA", "target_modules": targets}
        metadata |= {f"{part}.{key}": value for key, value in fields.items()}
    return metadata


def _read_kohya(tensors: dict[str, Tensor], prefix: str) -> dict[str, Factors]:
    names = [name.removesuffix(".alpha") for name in tensors if name.startswith(prefix) and name.endswith(".alpha")]
    return {
        name.removeprefix(prefix): Factors(
            tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"], float(tensors[f"{name}.alpha"])
        )
        for name in names
    }


def _read_peft(tensors: dict[str, Tensor], part: str, config: dict[str, Any]) -> dict[str, Factors]:
    ending = ".lora_A.weight"
    names = [name.removesuffix(ending) for name in tensors if name.startswith(f"{part}.") and name.endswith(ending)]
    factors: dict[str, Factors] = {}
    for name in names:
        down = tensors[name + ending]
        alpha = float(config.get(f"{part}.lora_alpha", down.shape[0]))
        factors[name.removeprefix(f"{part}.")] = Factors(down, tensors[f"{name}.lora_B.weight"], alpha)
    return factors
