"""Adapters to protobuf and back: this side's door for AdapterService.

Takes: plain values to ask with, messages to read. Gives: messages to send, plain values. Does not
know channels or calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar, Unpack

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from loramux.v1 import adapter_pb2 as pb
from loramux.v1 import adapter_service_pb2 as service_pb
from loramux_client import shelf
from loramux_client.picture_messages import read_kind, set_field
from loramux_client.upload_source import Source

Item = TypeVar("Item")
Ask = TypeVar("Ask", bound=Message)


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some items of a list and the token of what follows; empty at the end."""

    items: tuple[Item, ...]
    next_token: str

    def after(self, request: Ask) -> Ask:
        """The request, changed to ask for what follows."""
        set_field(request, "page_token", self.next_token)
        return request


def get_adapter_request(name: str) -> service_pb.GetAdapterRequest:
    """Asks for one adapter."""
    return _named(service_pb.GetAdapterRequest(), name)


def delete_adapter_request(name: str) -> service_pb.DeleteAdapterRequest:
    """Asks to take one adapter off the shelf."""
    return _named(service_pb.DeleteAdapterRequest(), name)


def list_versions_request(name: str) -> service_pb.ListVersionsRequest:
    """Asks for the first page of an adapter's versions."""
    return _named(service_pb.ListVersionsRequest(), name)


def _named(request: Ask, name: str) -> Ask:
    set_field(request, "name", name)
    return request


def upload_messages(
    source: Source, name: str, **options: Unpack[shelf.UploadOptions]
) -> Iterator[service_pb.UploadAdapterRequest]:
    """The spec (built now, so that a bad one is told now), then the chunks, read as asked."""
    first = service_pb.UploadAdapterRequest(spec=upload_spec(source, name, **options))

    def messages() -> Iterator[service_pb.UploadAdapterRequest]:
        yield first
        for chunk in source.chunks():
            yield service_pb.UploadAdapterRequest(chunk=chunk)

    return messages()


def upload_spec(source: Source, name: str, **options: Unpack[shelf.UploadOptions]) -> service_pb.UploadSpec:
    """What is uploaded and how it is to be read; what is not said stays unset."""
    spec = service_pb.UploadSpec(size_bytes=source.size, sha256=source.sha256)
    said: dict[str, object] = {"name": name, **options}
    spec.labels.update(options.get("labels") or {})
    spec.trigger_words.extend(options.get("trigger_words") or ())
    for field in said.keys() - {"labels", "trigger_words"}:
        if said[field] is not None:
            set_field(spec, field, said[field])
    return spec


def read_version(message: pb.AdapterVersion) -> shelf.AdapterVersion:
    """One version."""
    return shelf.AdapterVersion(
        adapter=message.adapter,
        number=message.number,
        digest=message.digest,
        blob_digest=message.blob_digest,
        size_bytes=message.size_bytes,
        kind=read_kind(message.kind),
        layout=message.layout,
        layout_digest=message.layout_digest,
        rank=message.rank,
        create_time=_time(message, "create_time"),
        embedding=_read_embedding(message),
    )


def _read_embedding(message: pb.AdapterVersion | pb.AcceptReport) -> shelf.Embedding | None:
    if not message.HasField("embedding"):
        return None
    found = message.embedding
    return shelf.Embedding(found.trigger, found.vectors, dict(sorted(found.widths.items())))


def read_adapter(message: pb.Adapter) -> shelf.Adapter:
    """One adapter."""
    return shelf.Adapter(
        name=message.name,
        latest_version=read_version(message.latest_version),
        labels=dict(message.labels),
        default_weight=message.default_weight if message.HasField("default_weight") else None,
        trigger_words=tuple(message.trigger_words),
        description=message.description,
        create_time=_time(message, "create_time"),
        update_time=_time(message, "update_time"),
        delete_time=_time(message, "delete_time"),
    )


def read_adapter_page(message: service_pb.ListAdaptersResponse) -> Page[shelf.Adapter]:
    """A page of adapters."""
    return Page(tuple(read_adapter(one) for one in message.adapters), message.next_page_token)


def read_version_page(message: service_pb.ListVersionsResponse) -> Page[shelf.AdapterVersion]:
    """A page of versions."""
    return Page(tuple(read_version(one) for one in message.versions), message.next_page_token)


def read_report(message: pb.AcceptReport) -> shelf.AcceptReport:
    """What was found in a file."""
    return shelf.AcceptReport(
        family=message.family,
        layout=message.layout,
        evidence=tuple(message.evidence),
        matched=tuple(shelf.MatchedModule(m.module, m.kind, m.rank, m.scale) for m in message.matched),
        ignored=tuple(shelf.IgnoredKey(i.key, i.reason) for i in message.ignored),
        warnings=tuple(message.warnings),
        embedding=_read_embedding(message),
    )


def read_upload(message: service_pb.UploadAdapterResponse) -> shelf.Upload:
    """How an upload ended."""
    return shelf.Upload(
        version=read_version(message.version) if message.HasField("version") else None,
        report=read_report(message.report),
        created=message.created,
    )


def _time(message: pb.Adapter | pb.AdapterVersion, field: str) -> datetime | None:
    stamp: Timestamp = getattr(message, field)
    return stamp.ToDatetime(tzinfo=UTC) if message.HasField(field) else None  # pyright: ignore[reportArgumentType]
