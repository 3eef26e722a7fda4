"""Embedding files: a word's vectors as diffusers, web interfaces and the store read them.

Takes vectors by text encoder; gives safetensors files, whole or not there. Of one text encoder a file holds one tensor
that is called by the word; of SDXL's two it holds clip_l and clip_g. A bundle is an adapter's file in kohya's naming
with every word's vectors in it. Knows no model and no training.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from loramux_train.outline import Family
from loramux_train.output.atomic import write_whole
from loramux_train.output.errors import NothingLearnt
from loramux_train.token_settings import NewToken

FOLDER = "embeddings"

_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2",
    "sdxl": "stable-diffusion-xl-v1-base",
}
_PAIR = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def embedding_file(folder: Path, token: NewToken) -> Path:
    """Where a word's file goes, in a run's folder."""
    return folder / FOLDER / f"{token.file_name}.safetensors"


def save_embedding(
    path: Path, token: NewToken, vectors: Mapping[str, Tensor], family: Family, about: Mapping[str, str]
) -> None:
    """Write [n, width] of each text encoder, as they are.

    Raises:
        NothingLearnt: for vectors that are not finite; nothing is written.
    """
    _check(token, vectors)
    tensors = {token.word: vectors["text_encoder"]} if len(vectors) == 1 else _pair(vectors)
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{_ARCHITECTURES[family]}/textual-inversion",
        "modelspec.title": token.word,
        "modelspec.trigger_phrase": token.word,
        **about,
    }
    write_whole(path, [save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)])


def save_bundle(adapter: Path, path: Path, words: Mapping[NewToken, Mapping[str, Tensor]]) -> None:
    """Write what an adapter's file holds, and every word's vectors beside its factors, under the word as captions and
    prompts write it: whoever reads the file looks for that in prompts."""
    with safe_open(adapter, "pt") as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata: dict[str, str] = file.metadata() or {}
    for token, vectors in words.items():
        _check(token, vectors)
        held = {"emb_params": vectors["text_encoder"]} if len(vectors) == 1 else _pair(vectors)
        tensors |= {f"bundle_emb.{token.word}.{key}": tensor.contiguous() for key, tensor in held.items()}
    write_whole(path, [save(tensors, metadata)])


def _pair(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_PAIR[part]: tensor for part, tensor in vectors.items()}


def _check(token: NewToken, vectors: Mapping[str, Tensor]) -> None:
    for part, tensor in vectors.items():
        if not tensor.isfinite().all():
            raise NothingLearnt(f"vectors of {token.word!r} for {part} are not finite; nothing was written")
