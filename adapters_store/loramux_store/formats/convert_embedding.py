"""An embedding's vectors in canonical form.

Takes an EmbeddingPlan and a sink; gives the compiled file's bytes to the sink, and warnings. Refuses values that are
not finite.
"""

from __future__ import annotations

from loramux_store.compiled_embedding import header_bytes
from loramux_store.formats.convert import Sink, as_bytes, read_float32
from loramux_store.formats.embedding import EmbeddingPlan

__all__ = ["convert_embedding"]


def convert_embedding(plan: EmbeddingPlan, sink: Sink) -> tuple[str, ...]:
    """Write the compiled file to the sink; the warnings that only values can give."""
    sink(memoryview(header_bytes(plan.embedding)))
    silent = True
    with plan.container.path.open("rb") as handle:
        for encoder in plan.embedding.widths:
            vectors = read_float32(handle, plan.tensors[encoder], encoder)
            silent = silent and not vectors.any()
            sink(as_bytes(vectors))
    return ("all_zero: every vector is zero",) if silent else ()
