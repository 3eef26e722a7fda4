"""Adapters and versions as rows and lines of text.

Takes: values of shelf.py, what lies beside a file. Gives: text, shown or to be shown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from loramux_client import shelf, terminal
from loramux_client.sidecars import Beside

ADAPTER_COLUMNS = (
    "name",
    "version",
    "kind",
    "rank",
    "layout",
    "size",
    "weight",
    "trigger words",
    "aliases",
    "pins",
    "now in",
    "digest",
)
VERSION_COLUMNS = ("version", "rank", "kind", "trigger", "layout", "size", "on device", "created", "digest", "blob")


def extent(vectors: int) -> str:
    """How many vectors."""
    return "1 vector" if vectors == 1 else f"{vectors} vectors"


def _rank(version: shelf.AdapterVersion) -> str:
    return str(version.rank) if version.embedding is None else extent(version.embedding.vectors)


def triggers(version: shelf.AdapterVersion | shelf.AcceptReport) -> list[str]:
    """Of the embedding that it is, or of those bundled with it."""
    return [each.trigger for each in ([version.embedding] if version.embedding else version.bundled)]


def _words(adapter: shelf.Adapter) -> str:
    """The triggers of embeddings, then what its owner or its file says brings it out."""
    return ", ".join(dict.fromkeys((*triggers(adapter.latest_version), *adapter.trigger_words)))


def _aliases(adapter: shelf.Adapter) -> str:
    return ", ".join(f"{alias}={number}" for alias, number in adapter.aliases.items())


def _pins(adapter: shelf.Adapter) -> str:
    """Such as `device, @prod=host`: the bare name's without a name."""
    pins = {reference.removeprefix(adapter.name): tier for reference, tier in adapter.pins.items()}
    return ", ".join(f"{at}={tier}" if at else tier for at, tier in sorted(pins.items()))


def say_beside(beside: Beside, options: Collection[str] = ()) -> None:
    """What was taken from the files beside one, or would be; not what the options say otherwise."""
    for name, value in beside.said.items():
        if name not in options:
            text = ", ".join(value) if isinstance(value, tuple) else str(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            terminal.say(f"  {name.replace('_', ' ')} of {beside.sources[name]}: {text}")
    for warning in beside.warnings:
        terminal.complain(f"  warning: {warning}")


def facts(adapter: shelf.Adapter) -> Iterator[tuple[str, str]]:
    """What there is to say of an adapter beside its versions, by what it is."""
    source = adapter.trigger_source
    told = "" if source in ("", "owner", "embedding") else f" (the file's {source})"
    yield "default weight", _weight(adapter)
    yield "trigger words", _words(adapter) + told
    yield "labels", ", ".join(f"{key}={value}" for key, value in sorted(adapter.labels.items()))
    yield "aliases", _aliases(adapter)
    yield "pins", _pins(adapter)
    yield "now in", adapter.tier
    yield "licence", adapter.licence
    yield "base model", adapter.base_model
    for fact, time in (("created", adapter.create_time), ("updated", adapter.update_time)):
        yield fact, "" if time is None else terminal.moment(time)
    yield "etag", adapter.etag


def _weight(adapter: shelf.Adapter) -> str:
    return "1" if adapter.default_weight is None else f"{adapter.default_weight:g}"


def adapter_row(adapter: shelf.Adapter) -> tuple[str, ...]:
    """A row of ADAPTER_COLUMNS."""
    version = adapter.latest_version
    return (
        adapter.name,
        str(version.number),
        version.kind,
        _rank(version),
        version.layout,
        terminal.size(version.size_bytes),
        _weight(adapter),
        _words(adapter),
        _aliases(adapter),
        _pins(adapter),
        adapter.tier,
        terminal.short(version.digest),
    )


def version_row(version: shelf.AdapterVersion) -> tuple[str, ...]:
    """A row of VERSION_COLUMNS."""
    created = version.create_time
    return (
        str(version.number),
        _rank(version),
        version.kind,
        ", ".join(triggers(version)) or "-",
        version.layout,
        terminal.size(version.size_bytes),
        terminal.size(version.device_bytes),
        "-" if created is None else terminal.moment(created),
        terminal.short(version.digest),
        terminal.short(version.blob_digest),
    )
