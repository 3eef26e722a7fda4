"""Embeddings that came in a LoRA's file.

Takes tensors by name and the layout that the LoRA is for; gives them planned, or Refused. Knows no tensor values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loramux_store.errors import Refused
from loramux_store.formats.tokens import BUNDLE, IN_BRACKETS, Found, PlannedEmbedding, by_bundle
from loramux_store.header import TensorEntry
from loramux_store.layout import Layout
from loramux_store.names import spelled, trigger_fault
from loramux_store.record import Embedding

__all__ = ["MAX_BUNDLED", "is_bundled", "plan_bundled"]

MAX_BUNDLED = 64
"""Embeddings in one LoRA's file; those of trainers have one for each new word, two or three."""


def is_bundled(name: str) -> bool:
    """Whether a tensor beside a LoRA is one of an embedding: bundled, or named by its token."""
    return name.startswith(BUNDLE) or bool(IN_BRACKETS.match(name))


def plan_bundled(tensors: Mapping[str, TensorEntry], layout: Layout) -> tuple[PlannedEmbedding, ...]:
    """Each token's, by their tokens, which are their triggers.

    Raises:
        Refused: `ti_bad_width`, `ti_len_mismatch`, `ti_too_many_vectors`, `ti_too_many_tokens`, `ti_several_tokens`,
            `ti_bad_token`, `shape_mismatch`, `unsupported_dtype`, `unknown_keys`, `duplicate_module`.
    """
    planned: dict[str, PlannedEmbedding] = {}
    for token, found in _found(tensors):
        _check_token(token, found, planned)
        if found.widths != layout.text_widths:
            raise _bad_width(found, layout)
        embedding = Embedding(token, found.vectors(), found.widths)
        planned[spelled(token)] = PlannedEmbedding(embedding, found.tensors)
    return tuple(planned.values())


def _found(tensors: Mapping[str, TensorEntry]) -> Iterator[tuple[str, Found]]:
    bundles = by_bundle({name: entry for name, entry in tensors.items() if name.startswith(BUNDLE)})
    for token, inside in bundles.items():
        yield token, Found.of(inside, None)
    for name, entry in sorted(tensors.items()):
        if IN_BRACKETS.match(name):
            yield name, Found.of({name: entry}, None)


def _check_token(token: str, found: Found, known: Mapping[str, PlannedEmbedding]) -> None:
    key = found.key
    if fault := trigger_fault(token):
        raise Refused(
            "ti_bad_token", f"the token of {key[:120]!r} cannot stand in a prompt: expected {fault}", {"key": key}
        )
    if other := known.get(spelled(token)):
        first = next(iter(other.tensors.values())).name
        raise Refused(
            "duplicate_module",
            f"{first!r} and {key!r} are vectors of one token: upper and lower case are the same in a prompt",
            {"key": key, "other": first, "module": token},
        )
    if len(known) == MAX_BUNDLED:
        raise Refused(
            "ti_too_many_tokens",
            f"the file bundles more than {MAX_BUNDLED} embeddings, {key!r} among them",
            {"key": key, "limit": str(MAX_BUNDLED)},
        )


def _bad_width(found: Found, layout: Layout) -> Refused:
    expected = ", ".join(f"{width} in {encoder}" for encoder, width in layout.text_widths.items())
    return Refused(
        "ti_bad_width",
        f"the LoRA is for {layout.name}, its embedding is not: {found.shown}, expected {expected}",
        {"key": found.key, "got": found.shown, "expected": expected},
    )
