"""Reports and interpretation options as JSON, and the digest they enter.

Takes and gives values of record.py and text. Knows no SQL.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import astuple
from typing import Any

from loramux_store.errors import InvalidArgument
from loramux_store.record import AcceptReport, Embedding, InterpretOptions, MatchedModule

__all__ = [
    "options_from_json",
    "options_to_json",
    "report_from_json",
    "report_to_json",
    "version_digest",
]


def report_to_json(report: AcceptReport) -> str:
    """Rows without field names: a report of 800 modules stays small."""
    body: dict[str, object] = {
        "layout": [report.layout_name, report.layout_digest],
        "evidence": report.evidence,
        "family": report.family,
        "matched": [astuple(m) for m in report.matched],
        "ignored": report.ignored,
        "warnings": report.warnings,
    }
    if report.embedding is not None:
        found = report.embedding
        body["embedding"] = [found.trigger, found.vectors, dict(found.widths)]
    if report.bundled:
        body["bundled"] = [[each.trigger, each.vectors, dict(each.widths)] for each in report.bundled]
    return json.dumps(body, separators=(",", ":"), allow_nan=False)


def report_from_json(text: str) -> AcceptReport:
    """The inverse."""
    body: dict[str, Any] = json.loads(text)
    return AcceptReport(
        layout_name=body["layout"][0],
        layout_digest=body["layout"][1],
        evidence=tuple(body["evidence"]),
        family=body["family"],
        matched=tuple(MatchedModule(*row) for row in body["matched"]),
        ignored=tuple((key, why) for key, why in body["ignored"]),
        warnings=tuple(body["warnings"]),
        embedding=Embedding(*body["embedding"]) if "embedding" in body else None,
        bundled=tuple(Embedding(*each) for each in body.get("bundled", ())),
    )


def options_to_json(options: InterpretOptions) -> str:
    """Canonical: the same interpretation gives the same text. Of files without bundled embeddings, bundled is False.

    A PEFT config is written again without its white space but in its own order, because the first
    of its patterns that matches wins.
    """
    body: dict[str, object] = {}
    if options.alpha is not None:
        if not math.isfinite(options.alpha):
            raise InvalidArgument("options.alpha", options.alpha, "a finite number")
        body["alpha"] = float(options.alpha) + 0.0  # -0.0 and 0 are one alpha
    if options.peft_config is not None:
        try:
            parsed = json.loads(options.peft_config)
        except (ValueError, RecursionError):
            raise InvalidArgument("options.peft_config", options.peft_config[:80], "a JSON object") from None
        body["peft_config"] = json.dumps(parsed, separators=(",", ":"))
    if options.trigger is not None:
        body["trigger"] = options.trigger
    if options.bundled:
        body["bundled"] = True
    return json.dumps(body, separators=(",", ":"), sort_keys=True)


def options_from_json(text: str) -> InterpretOptions:
    """The inverse, up to canonical form."""
    body: dict[str, Any] = json.loads(text)
    return InterpretOptions(body.get("peft_config"), body.get("alpha"), body.get("trigger"), body.get("bundled", False))


def version_digest(blob_digest: str, options: InterpretOptions) -> str:
    """Sha256 of the blob's digest and the canonical options."""
    return hashlib.sha256((blob_digest + options_to_json(options)).encode()).hexdigest()
