"""The base as a folder in diffusers layout.

Takes trained parts; gives fp16 safetensors with their configurations, exchanged for what was there in one rename. Knows
nothing of how the parts came to be, and writes only where it is told.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from loramux_train.builtin.denoiser import SCHEDULE
from loramux_train.builtin.drawing import Parts
from loramux_train.builtin.tokenizer import clip_merges, write_tokenizer

LIMIT = 16 * 1024 * 1024  # bytes the shipped base may take

_INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def export_base(parts: Parts, folder: Path) -> int:
    """Write the base to `folder` and return its size in bytes; refuses one over the limit."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    (fresh / "model_index.json").write_text(json.dumps(_INDEX, indent=2) + "\n")
    _write_scheduler(fresh / "scheduler")
    write_tokenizer(fresh / "tokenizer", clip_merges())
    for name in ("text_encoder", "unet", "vae"):
        _write_half(getattr(parts, name), fresh / name)
    size = folder_size(fresh)
    if size > LIMIT:
        raise ValueError(f"{fresh}: {size} bytes, the limit is {LIMIT}")
    _exchange(fresh, folder)
    return size


def folder_size(folder: Path) -> int:
    """Bytes of every file beneath a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _restore_text_level(file: Path) -> None:
    """Name text encoder tensors as every Stable Diffusion does: transformers 5 saves them without `text_model.`."""
    tensors = load_file(file)
    named = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}
    save_file(named, file, {"format": "pt"})


def _write_half(model: Any, folder: Path) -> None:
    """Save a copy in fp16; the model itself stays in fp32."""
    full = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.half().save_pretrained(folder, safe_serialization=True)
    model.float().load_state_dict(full)
    if isinstance(model, CLIPTextModel):
        _restore_text_level(folder / "model.safetensors")
    config = folder / "config.json"
    known = {key: value for key, value in json.loads(config.read_text()).items() if key != "_name_or_path"}
    config.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


def _write_scheduler(folder: Path) -> None:
    folder.mkdir()
    settings = {"_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.42.1", **SCHEDULE}
    (folder / "scheduler_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _exchange(fresh: Path, folder: Path) -> None:
    """Put `fresh` in the place of `folder`; a reader finds the old folder or the new one."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
