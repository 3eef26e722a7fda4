"""The parts of a base from a folder in diffusers layout.

Takes a folder and dtypes; gives `Parts`. It knows no device.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from loramux_server.engine.base_parts import ENCODERS, TEXT_TIME, TOKENIZERS, Dtypes, Parts, complete, named
from loramux_server.engine.pipeline import TextEncoder
from loramux_server.errors import BadBase

_WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")
_HALF = ("fp16", "bf16")  # variants that are the model in another dtype; others (non_ema) are other weights


def read_folder(folder: Path, dtypes: Dtypes) -> Parts:
    """Every part of the folder.

    Raises:
        BadBase: where a part is missing, pickled, incomplete or cannot be read; names it.
    """
    index = named(folder, "model_index.json", lambda: _json(folder, "model_index.json"))
    components = check_folder(folder)
    count = len(ENCODERS) if ENCODERS[1] in components else 1
    kinds: list[Any] = [CLIPTextModel, CLIPTextModelWithProjection]
    return Parts(
        digest=_digest(folder, components),
        unet=_model(folder, "unet", UNet2DConditionModel, torch_dtype=dtypes.models),
        vae=_model(folder, "vae", AutoencoderKL, torch_dtype=dtypes.vae),
        text_encoders=tuple(
            TextEncoder(part, _tokenizer(folder, words), _model(folder, part, kind, dtype=dtypes.models))
            for part, words, kind in list(zip(ENCODERS, TOKENIZERS, kinds, strict=True))[:count]
        ),
        scheduler_config=named(folder, "scheduler", lambda: _json(folder, "scheduler/scheduler_config.json")),
        zeros_for_no_text=count == 2 and bool(index.get("force_zeros_for_empty_prompt", True)),
    )


def check_folder(folder: Path) -> tuple[str, ...]:
    """Names of the parts of a base, which are all there and have weights; these are not read.

    Raises:
        BadBase: where a part is missing, pickled or of another architecture; names it.
    """
    named(folder, "model_index.json", lambda: _json(folder, "model_index.json"))
    _check_parts(folder, 1)
    config = named(folder, "unet", lambda: _json(folder, "unet/config.json"))
    _check_kind(folder, config)
    count = 2 if config.get("addition_embed_type") == TEXT_TIME else 1
    components = _check_parts(folder, count)
    for part in ("unet", "vae", *ENCODERS[:count]):
        _variant(folder, part)
    return components


def _check_parts(folder: Path, count: int) -> tuple[str, ...]:
    """Names of the parts of a base with `count` text encoders, all of them there."""
    components = ("unet", "vae", *ENCODERS[:count], *TOKENIZERS[:count], "scheduler")
    missing = [part for part in components if not (folder / part).is_dir()]
    if missing:
        raise BadBase(f"base {folder} lacks {', '.join(missing)}; expected {', '.join(components)}")
    return components


def _json(folder: Path, name: str) -> dict[str, Any]:
    file = folder / name
    if not file.is_file():
        raise BadBase(f"base {folder} has no {name}; expected a folder in diffusers layout")
    return json.loads(file.read_text())


def _check_kind(folder: Path, unet: dict[str, Any]) -> None:
    kind, added = unet.get("_class_name"), unet.get("addition_embed_type")
    if kind != "UNet2DConditionModel":
        raise BadBase(f"base {folder}: unet is a {kind}, expected a UNet2DConditionModel")
    if added not in (None, TEXT_TIME):
        raise BadBase(f"base {folder}: unet has added embeddings of type {added}, expected none or {TEXT_TIME}")


def _model(folder: Path, part: str, kind: Any, **dtype: Any) -> Any:
    variant = _variant(folder, part)
    load = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True, "variant": variant}
    model, info = named(folder, part, lambda: kind.from_pretrained(folder / part, **load, **dtype))
    complete(folder, part, info["missing_keys"])
    return model


def _variant(folder: Path, part: str) -> str | None:
    """None for weights under their plain name, else the one dtype they are there in."""
    names = [file.name for file in (folder / part).iterdir()]
    found = {match[1] for match in map(_WEIGHTS.fullmatch, names) if match}
    if None in found:
        return None
    for variant in _HALF:
        if variant in found:
            return variant
    pickled = sorted(name for name in names if name.endswith(_PICKLED))
    reason = f"; {pickled[0]} is pickled, and nothing is unpickled here" if pickled else ""
    raise BadBase(f"base {folder}: {part} has no safetensors weights{reason}")


def _tokenizer(folder: Path, part: str) -> CLIPTokenizer:
    whole = (folder / part / "tokenizer.json").is_file()
    if not whole and not all((folder / part / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise BadBase(f"base {folder}: {part} lacks vocab.json or merges.txt")
    load: Any = CLIPTokenizer.from_pretrained
    return named(folder, part, lambda: load(folder / part, local_files_only=True))


def _digest(folder: Path, components: tuple[str, ...]) -> str:
    """Hex sha256 over the name and sha256 of every file of the parts, in the order of their names."""
    total = hashlib.sha256()
    files = sorted(p for part in components for p in (folder / part).rglob("*") if p.is_file())
    for file in files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()
