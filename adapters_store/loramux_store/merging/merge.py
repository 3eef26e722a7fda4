"""A blend of adapters of the store as one file.

Takes a store, entries, a method, a form and a place; gives the files written. The same call gives the same bytes. Knows
no server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import merge as in_order
from itertools import groupby
from pathlib import Path

import torch

from loramux_store.errors import Inexpressible, InvalidArgument
from loramux_store.forms.export import Form, write_adapter
from loramux_store.forms.factors import Factors, read_factors
from loramux_store.forms.vectors import Bundled, read_vectors
from loramux_store.layout import Layout
from loramux_store.merging.entries import Entry, Method
from loramux_store.merging.exact import Weighted, concatenated
from loramux_store.merging.truncated import truncated
from loramux_store.merging.weighed import weighed
from loramux_store.names import spelled
from loramux_store.record import VersionRecord
from loramux_store.store import Store

__all__ = ["merge"]


def merge(store: Store, entries: Sequence[Entry], method: Method, form: Form, target: Path) -> tuple[Path, ...]:
    """Write the blend: kohya and diffusers to the file `target`, PEFT to a folder of that name.

    Embeddings that are bundled with an entry go along whole, whatever its weight, unless that is 0.

    Raises:
        InvalidArgument: no entries, entries of different layouts, or two that bundle one token.
        Inexpressible: an embedding, magnitudes in company, or what the method or the form cannot say.
        FileExistsError: what is there is never replaced.
        NotFound, DataLoss: as of the store.
        ModuleNotFoundError: a method of PEFT's without PEFT.
    """
    if not entries:
        raise InvalidArgument("entries", "none", "at least one NAME[@VERSION]=WEIGHT")
    versions = [store.resolve(entry.ref) for entry in entries]
    layout = _layout(store, versions)
    bundled = _bundled(store, versions, entries)
    streams = [
        _weighted(read_factors(store.compiled(version), layout), entry.weight)
        for version, entry in zip(versions, entries, strict=True)
    ]
    said = {
        "loramux.method": _text(method),
        "modelspec.merged_from": ", ".join(
            f"{version.adapter}@{version.number}={entry.weight:g}"
            for version, entry in zip(versions, entries, strict=True)
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(method.seed)
        return write_adapter(_merged(streams, method), bundled, layout, form, target, said)


def _layout(store: Store, versions: Sequence[VersionRecord]) -> Layout:
    first = versions[0]
    for version in versions:
        if version.embedding is not None:
            raise Inexpressible("a merge", version.adapter, "it is an embedding, which no other adapter can hold")
        if version.layout_digest != first.layout_digest:
            raise InvalidArgument(
                "entries",
                f"{version.adapter} of layout {version.layout_name}",
                f"the layout of {first.adapter}, {first.layout_name}",
            )
    return store.layout(first.layout_digest)


def _bundled(store: Store, versions: Sequence[VersionRecord], entries: Sequence[Entry]) -> list[Bundled]:
    """In the blend that the server draws, every token has one meaning too."""
    found: dict[str, tuple[VersionRecord, Bundled]] = {}
    for version, entry in zip(versions, entries, strict=True):
        if entry.weight == 0 or not version.bundled:
            continue
        for each in read_vectors(store.compiled(version), version.bundled):
            first, _ = found.setdefault(spelled(each.trigger), (version, each))
            if first is not version and first.digest != version.digest:
                raise InvalidArgument(
                    "entries",
                    f"{first.adapter}@{first.number} and {version.adapter}@{version.number}",
                    f"one of them: both bundle an embedding of the token {each.trigger!r}",
                )
    return [each for _, each in found.values()]


def _weighted(modules: Iterable[Factors], weight: float) -> Iterator[Weighted]:
    return ((module, weight) for module in modules)


def _merged(streams: Sequence[Iterator[Weighted]], method: Method) -> Iterator[Factors]:
    """Module by module; each stream is in the order of their paths."""

    def path(member: Weighted) -> str:
        return member[0].path

    for _, members in groupby(in_order(*streams, key=path), key=path):
        if method.name == "concat":
            yield concatenated(list(members))
        elif method.rank is not None:
            yield truncated(concatenated(list(members)), method.rank)
        else:
            yield weighed(list(members), method)


def _text(method: Method) -> str:
    said = {"rank": method.rank, "density": method.density}
    if method.density is not None:
        said |= {"sign": method.sign, "seed": method.seed}
    return " ".join([method.name, *(f"{name}={value}" for name, value in said.items() if value is not None)])
