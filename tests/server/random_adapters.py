"""Files of LoRA with random factors, in PEFT naming, and of random embeddings, for any base."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file


@dataclass(frozen=True)
class RandomAdapter:
    """An adapter file; a LoRA has alpha in its metadata, as diffusers writes it, and an embedding rank 0."""

    name: str
    file: Path
    rank: int


def random_adapter(
    base: Path, folder: Path, name: str, *, rank: int, alpha: float, strength: float, seed: int, parts: Sequence[str]
) -> RandomAdapter:
    """Random factors on every layer whose path contains one of `parts`."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    shapes = layer_shapes(base)
    for path, shape in shapes.items():
        if not any(part in path for part in parts):
            continue
        fan_in = int(np.prod(shape[1:]))
        a = torch.randn(rank, *shape[1:], generator=generator) / fan_in**0.5
        b = torch.randn(shape[0], rank, *(1,) * (len(shape) - 2), generator=generator) / rank**0.5
        tensors[f"{path}.lora_A.weight"] = a.contiguous()
        tensors[f"{path}.lora_B.weight"] = (b * strength).contiguous()
    components = {path.partition(".")[0] for path in tensors}
    config = {
        f"{c}.{key}": value
        for c in components
        for key, value in {"r": rank, "lora_alpha": alpha, "target_modules": _targets(tensors, c)}.items()
    }
    file = folder / f"{name}.safetensors"
    save_file(tensors, file, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(config)})
    return RandomAdapter(name, file, rank)


def random_embedding(base: Path, folder: Path, name: str, *, vectors: int, seed: int) -> RandomAdapter:
    """For a base of one text encoder; ten times as large as the vectors of tiny bases, so that pictures show it."""
    width = json.loads((base / "text_encoder" / "config.json").read_text())["hidden_size"]
    drawn = torch.randn(vectors, width, generator=torch.Generator().manual_seed(seed)) * 0.3
    file = folder / f"{name}.safetensors"
    save_file({"emb_params": drawn}, file)
    return RandomAdapter(name, file, 0)


def _targets(tensors: Mapping[str, torch.Tensor], component: str) -> list[str]:
    prefix, suffix = f"{component}.", ".lora_A.weight"
    return [
        key.removeprefix(prefix).removesuffix(suffix)
        for key in tensors
        if key.startswith(prefix) and key.endswith(suffix)
    ]


@cache
def layer_shapes(base: Path) -> Mapping[str, tuple[int, ...]]:
    """Weight shapes of the base's Linear and Conv2d layers by path, read with diffusers and transformers, once."""
    pipe = DiffusionPipeline.from_pretrained(base)
    components = [name for name in ("unet", "text_encoder", "text_encoder_2") if name in pipe.components]
    return {
        f"{component}.{path}": tuple(layer.weight.shape)
        for component in components
        for path, layer in pipe.components[component].named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and path != "time_embedding.cond_proj"
    }


ALL_PARTS = (
    "attn1.",
    "attn2.",
    "ff.net",
    "proj_",
    "resnets",
    "time_emb",
    "samplers",
    "conv_",
    "add_emb",
    "text_encoder",
)
