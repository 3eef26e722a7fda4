"""The parts of a base from one .safetensors checkpoint in the original layout of Stable Diffusion.

Takes a file and dtypes; gives `Parts`. It knows no device. A checkpoint holds weights alone: what else a base is
(widths, heads, noise schedule) comes from the blueprint of its family, which is told by names of its tensors.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from loramux_server.engine import original_names
from loramux_server.engine.base_parts import ENCODERS, Dtypes, Parts, complete, named
from loramux_server.engine.pipeline import Family, TextEncoder
from loramux_server.errors import BadBase

_MARKS = {
    "conditioner.embedders.1.model.token_embedding.weight": Family.SDXL,
    "cond_stage_model.model.token_embedding.weight": Family.SD2,
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": Family.SD1,
    "cond_stage_model.transformer.embeddings.token_embedding.weight": Family.SD1,
}
_REFINER = "conditioner.embedders.0.model.token_embedding.weight"
_FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"
_BLUEPRINTS = Path(__file__).parent / "blueprints"
_NOISE_SIDE = 64  # of SD 2's noise predictors, in latents; its velocity predictors were trained at 96


def read_file(file: Path, dtypes: Dtypes) -> Parts:
    """Every part of the checkpoint.

    Raises:
        BadBase: for a file that is not of one of the families, or lacks weights of a part; names it.
    """
    family, names, metadata = check_file(file)
    blueprint = _adjusted(_blueprint(family), names, metadata)
    return parts_of(file, named(file, "its weights", lambda: load_file(file)), blueprint, dtypes)


def check_file(file: Path) -> tuple[Family, list[str], dict[str, str]]:
    """The checkpoint's family, the names of its tensors and its metadata; no weights are read.

    Raises:
        BadBase: for a file that is not of one of the families.
    """
    if file.suffix != ".safetensors":
        raise BadBase(f"base {file} is no .safetensors file; nothing is unpickled here")
    names, metadata = named(file, "its header", lambda: _header(file))
    return _family(file, names), names, metadata


def _header(file: Path) -> tuple[list[str], dict[str, str]]:
    with safe_open(file, "pt") as opened:
        return list(opened.keys()), opened.metadata() or {}


def _family(file: Path, names: Iterable[str]) -> Family:
    present = set(names)
    lacking = [
        part
        for part, prefix in (("unet", original_names.UNET), ("vae", original_names.VAE))
        if not any(name.startswith(prefix) for name in present)
    ]
    if lacking:
        raise BadBase(f"base {file} lacks {', '.join(lacking)}; expected a whole checkpoint in the original layout")
    for mark, family in _MARKS.items():
        if mark in present:
            return family
    if _REFINER in present:
        raise BadBase(f"base {file} is the refiner of SDXL, expected the base")
    raise BadBase(f"base {file} lacks text_encoder; expected that of Stable Diffusion 1, 2 or SDXL")


def _blueprint(family: Family) -> dict[str, Any]:
    return json.loads((_BLUEPRINTS / f"{family}.json").read_text())


def _adjusted(blueprint: dict[str, Any], names: Iterable[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    """With what the file says of its own prediction: by marks that trainers leave, or in its metadata."""
    present = set(names)
    scheduler, unet = dict(blueprint["scheduler"]), dict(blueprint["unet"])
    said = metadata.get("modelspec.prediction_type") or metadata.get("modelspec.predict_key") or ""
    if "v_pred" in present or said.startswith("v"):
        scheduler["prediction_type"] = "v_prediction"
    elif said == "epsilon" and scheduler["prediction_type"] == "v_prediction":
        scheduler["prediction_type"], unet["sample_size"] = "epsilon", _NOISE_SIDE
    if "ztsnr" in present:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return blueprint | {"scheduler": scheduler, "unet": unet}


def parts_of(file: Path, tensors: dict[str, Tensor], blueprint: dict[str, Any], dtypes: Dtypes) -> Parts:
    """The parts that a blueprint describes, with a checkpoint's tensors for weights.

    Raises:
        BadBase: where weights are missing, left over or of other shapes; names the part.
    """
    encoders = [part for part in ENCODERS if part in blueprint]
    return Parts(
        digest=_digest(file),
        unet=_unet(file, tensors, blueprint["unet"], dtypes.models),
        vae=_vae(file, tensors, blueprint["vae"], dtypes.vae),
        text_encoders=tuple(
            TextEncoder(
                part,
                tokenizer(blueprint["pads"][index]),
                _text_encoder(file, tensors, blueprint[part], index, len(encoders), dtypes.models),
            )
            for index, part in enumerate(encoders)
        ),
        scheduler_config=blueprint["scheduler"],
        zeros_for_no_text=len(encoders) == 2,
    )


def _unet(file: Path, tensors: Mapping[str, Tensor], config: dict[str, Any], dtype: torch.dtype) -> Any:
    if _FIRST_LAYER in tensors:  # those of inpainting bases read more; the check of the architecture says so
        config = config | {"in_channels": tensors[_FIRST_LAYER].shape[1]}
    with torch.device("meta"):
        model: Any = UNet2DConditionModel(**config)
    weights = named(file, "unet", lambda: original_names.unet(tensors, model.config))
    filled = _filled(file, "unet", model, weights, dtype)
    more = sum(name.startswith(original_names.UNET) for name in tensors) - len(filled.state_dict())
    if more:  # the converter drops what it does not know, and another UNet would be drawn with
        raise BadBase(f"base {file}: unet has {more} weights more than its family's")
    return filled


def _vae(file: Path, tensors: Mapping[str, Tensor], config: dict[str, Any], dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        model: Any = AutoencoderKL(**config)
    weights = named(file, "vae", lambda: original_names.vae(tensors, model.config))
    return _filled(file, "vae", model, weights, dtype)


def _text_encoder(
    file: Path, tensors: Mapping[str, Tensor], config: dict[str, Any], index: int, count: int, dtype: torch.dtype
) -> Any:
    kind: Any = CLIPTextModelWithProjection if index else CLIPTextModel
    model = kind(CLIPTextConfig(**config))  # not on the meta device: it has buffers that no file holds
    return _filled(file, ENCODERS[index], model, original_names.text_encoder(tensors, index, count), dtype)


def _filled(file: Path, part: str, model: Any, weights: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """The model with these weights; every weight of the model must be there, in its shape."""
    wanted = model.state_dict()
    complete(file, part, wanted.keys() - weights.keys())
    for name, weight in weights.items():
        if name in wanted and weight.shape != wanted[name].shape:
            raise BadBase(
                f"base {file}: {part} has {name} of {list(weight.shape)}, expected {list(wanted[name].shape)}"
            )
    model.load_state_dict({name: weights[name].to(dtype) for name in wanted}, assign=True)
    return model.to(dtype)


def tokenizer(pad: str) -> CLIPTokenizer:
    """CLIP's own, which all bases share but for the token that they pad with."""
    lines = gzip.decompress((_BLUEPRINTS / "clip_merges.txt.gz").read_bytes()).decode().splitlines()
    alphabet = _alphabet()
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *(line.replace(" ", "") for line in lines)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    merges: Any = [tuple(line.split()) for line in lines]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77)


def _alphabet() -> list[str]:
    """The 256 bytes as characters that can be seen, in the order of CLIP's vocabulary."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, seen), *(chr(256 + number) for number in range(256 - len(seen)))]


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
