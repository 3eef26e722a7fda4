"""Would a file be accepted? Asked of the file alone, without a store.

Takes a path, the options and the layouts; gives a Verdict. Knows no catalog and no server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loramux_store.conversion import convert, planned
from loramux_store.errors import InvalidArgument, Refused
from loramux_store.formats.plan import Plan
from loramux_store.header import read_container
from loramux_store.layout import Layout
from loramux_store.record import AcceptReport, Embedding, InterpretOptions

__all__ = ["Kind", "Verdict", "judge"]

Kind = Literal["lora", "embedding"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an upload of the file would come to.

    reason, key: why it is refused, a word for programs, and the tensor, field or metadata at fault, where it is one;
    null when it is accepted. family: the layout it is for, or the model that a refused file is for, where that is
    known. evidence: how that is known, or what is wrong, in words. modules: how many it touches; kinds: of deltas, or
    embedding; ranks: of rank rows, each once; warnings: their codes; ignored: keys. embeddings: the one that it is, or
    those bundled with it; messages: the warnings in words.
    """

    verdict: Literal["accepted", "refused"]
    reason: str | None
    key: str | None
    family: str | None
    evidence: tuple[str, ...]
    modules: int = 0
    kinds: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    messages: tuple[str, ...] = ()


def judge(
    path: Path,
    options: InterpretOptions,
    layouts: Sequence[Layout],
    wanted: Layout | None = None,
    kind: Kind | None = None,
) -> Verdict:
    """Everything that an upload looks at, values too. wanted: what it must be for; kind: what it must be.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        plan = planned(read_container(path), options, path.stem, layouts, wanted)
        _check_kind(plan, kind)
        warnings = convert(plan, len)
    except Refused as error:
        detail = error.detail
        return Verdict("refused", error.reason, detail.get("key"), detail.get("family"), (str(error),))
    except InvalidArgument as error:  # of the options: the file and its configuration do not go together
        return Verdict("refused", "invalid_argument", error.field, None, (str(error),))
    return _accepted(plan.report, (*plan.report.warnings, *warnings))


def _accepted(report: AcceptReport, warnings: tuple[str, ...]) -> Verdict:
    kinds = {module.algorithm for module in report.matched} or {"embedding"}
    return Verdict(
        "accepted",
        None,
        None,
        report.layout_name,
        report.evidence,
        len(report.matched),
        tuple(sorted(kinds)),
        tuple(sorted({module.rank for module in report.matched if module.rank})),
        tuple(warning.partition(":")[0] for warning in warnings),
        tuple(key for key, _ in report.ignored),
        report.embeddings,
        tuple(warning.partition(": ")[2] for warning in warnings),
    )


def _check_kind(plan: Plan, kind: Kind | None) -> None:
    found: Kind = "lora" if plan.report.embedding is None else "embedding"
    if kind is not None and kind != found:
        detail = {"expected": kind, "got": found, "key": next(iter(plan.container.tensors))}
        raise Refused("kind_mismatch", f"the file is of kind {found}, not {kind}", detail)
