"""The forms of textual inversions, alone and bundled with a LoRA.

Takes a compiled file and the embeddings in it; gives tensors by name. Knows no modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from loramux_store.compiled_file import MAX_FILE, vector_name
from loramux_store.errors import Inexpressible
from loramux_store.formats.convert import read_float32
from loramux_store.formats.leaf import split_key
from loramux_store.formats.tokens import BUNDLE
from loramux_store.header import read_container
from loramux_store.header_names import MAX_NAME
from loramux_store.record import Embedding

__all__ = ["Bundled", "bundled_tensors", "embedding_tensors", "read_vectors"]

_OF_TWO = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


@dataclass(frozen=True, slots=True)
class Bundled:
    """A trigger and its vectors, fp32 [vectors, width] by text encoder."""

    trigger: str
    vectors: dict[str, Tensor]


def read_vectors(compiled: Path, embeddings: Sequence[Embedding]) -> list[Bundled]:
    """Those of a compiled file, all of which are named."""
    container = read_container(compiled, MAX_FILE)
    with compiled.open("rb") as handle:
        return [
            Bundled(
                embedding.trigger,
                {
                    encoder: read_float32(handle, container.tensors[vector_name(number, encoder)], encoder)
                    for encoder in embedding.widths
                },
            )
            for number, embedding in enumerate(embeddings)
        ]


def embedding_tensors(found: Bundled, form: str) -> dict[str, Tensor]:
    """An embedding by itself; only diffusers' form of one encoder names the trigger. Raises Inexpressible."""
    if form == "peft":
        raise Inexpressible(form, found.trigger, "PEFT has no textual inversions; kohya's form and diffusers' have")
    if set(found.vectors) == {"text_encoder"} and form == "diffusers":
        return {_as_name(found.trigger): found.vectors["text_encoder"]}
    return _by_encoder(found)


def bundled_tensors(bundled: Iterable[Bundled], form: str) -> dict[str, Tensor]:
    """Embeddings beside a LoRA's tensors, as web interfaces read them: only in kohya's form. Raises Inexpressible."""
    tensors: dict[str, Tensor] = {}
    for each in bundled:
        if form != "kohya":
            why = "it is a bundled embedding, which only kohya's form can hold beside a LoRA"
            raise Inexpressible(form, repr(each.trigger), why)
        for key, vectors in _by_encoder(each).items():
            name = f"{BUNDLE}{each.trigger}.{key}"
            if len(name.encode()) > MAX_NAME:
                raise Inexpressible(form, repr(each.trigger), "the name of its tensor would be too long")
            tensors[name] = vectors
    return tensors


def _by_encoder(found: Bundled) -> dict[str, Tensor]:
    if set(found.vectors) == {"text_encoder"}:
        return {"emb_params": found.vectors["text_encoder"]}
    return {_OF_TWO[name]: tensor for name, tensor in found.vectors.items()}


def _as_name(trigger: str) -> str:
    """The trigger, where nobody would take it for another tensor's name."""
    if split_key(trigger) or trigger.endswith((".weight", ".bias")) or len(trigger.encode()) > MAX_NAME:
        raise Inexpressible("diffusers", trigger, "as the name of a tensor it would mean something else")
    return trigger
