"""The forms of textual inversions.

Takes an embedding's compiled file; gives tensors by name. Knows no modules.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from loramux_store.errors import Inexpressible
from loramux_store.formats.convert import read_float32
from loramux_store.formats.leaf import split_key
from loramux_store.header import MAX_NAME, read_container
from loramux_store.record import Embedding

__all__ = ["embedding_tensors"]

_OF_TWO = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def embedding_tensors(compiled: Path, embedding: Embedding, form: str) -> dict[str, Tensor]:
    """fp32 [vectors, width] by name; only diffusers' form of one encoder names the trigger. Raises Inexpressible."""
    if form == "peft":
        raise Inexpressible(form, embedding.trigger, "PEFT has no textual inversions; kohya's form and diffusers' have")
    container = read_container(compiled)
    with compiled.open("rb") as handle:
        vectors = {name: read_float32(handle, container.tensors[name], name) for name in embedding.widths}
    if set(vectors) == {"text_encoder"} and form == "diffusers":
        return {_as_name(embedding.trigger): vectors["text_encoder"]}
    if set(vectors) == {"text_encoder"}:
        return {"emb_params": vectors["text_encoder"]}
    return {_OF_TWO[name]: tensor for name, tensor in vectors.items()}


def _as_name(trigger: str) -> str:
    """The trigger, where nobody would take it for another tensor's name."""
    if split_key(trigger) or trigger.endswith((".weight", ".bias")) or len(trigger.encode()) > MAX_NAME:
        raise Inexpressible("diffusers", trigger, "as the name of a tensor it would mean something else")
    return trigger
