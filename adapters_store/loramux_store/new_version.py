"""What the catalog keeps of a file that was accepted.

Takes a finished upload and what was found in it; gives the row to come. Knows no SQL and no tensors.
"""

from __future__ import annotations

from dataclasses import replace

from loramux_store.catalog_rows import NewVersion
from loramux_store.file_notes import notes_of
from loramux_store.footprint import device_bytes, vector_bytes
from loramux_store.formats.plan import Plan
from loramux_store.header import Container
from loramux_store.record import AcceptReport
from loramux_store.report_json import options_to_json, report_to_json, version_digest
from loramux_store.upload import Upload

__all__ = ["new_version"]


def new_version(upload: Upload, blob_digest: str, plan: Plan, report: AcceptReport, container: Container) -> NewVersion:
    """report: the plan's, with what its conversion warned of."""
    embedding = report.embedding
    options = replace(upload.spec.options, bundled=bool(report.bundled))
    if embedding is not None:
        options = replace(options, trigger=embedding.trigger)
    return NewVersion(
        digest=version_digest(blob_digest, options),
        blob_digest=blob_digest,
        size_bytes=upload.received,
        layout=plan.layout,
        kind="lora" if embedding is None else "embedding",
        rank=max((module.rank for module in report.matched), default=0),
        device_bytes=device_bytes(report.matched, plan.layout) + vector_bytes(report.embeddings),
        embedding=embedding,
        bundled=report.bundled,
        notes=notes_of(container.metadata, report.embeddings),
        options=options_to_json(options),
        report=report_to_json(report),
    )
