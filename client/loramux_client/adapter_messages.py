"""Adapters to protobuf and back: this side's door for AdapterService.

Takes: plain values to ask with, messages to read. Gives: messages to send, plain values. Does not
know channels or calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Generic, TypeVar, Unpack

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from loramux.v1 import adapter_pb2 as pb
from loramux.v1 import adapter_service_pb2 as service_pb
from loramux_client import shelf
from loramux_client.picture_messages import read_kind, set_field
from loramux_client.upload_source import Source

_TIERS: dict[int, str] = {
    pb.TIER_UNSPECIFIED: "",
    pb.TIER_DISK: "disk",
    pb.TIER_HOST: "host",
    pb.TIER_DEVICE: "device",
}

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


def list_adapters_request(filter: str, order_by: str, deleted: bool) -> service_pb.ListAdaptersRequest:
    """Asks for the first page of the adapters that a filter selects."""
    request = service_pb.ListAdaptersRequest(show_deleted=deleted)
    set_field(request, "filter", filter)
    set_field(request, "order_by", order_by)
    return request


def update_adapter_request(
    name: str, etag: str, **changes: Unpack[shelf.AdapterChanges]
) -> service_pb.UpdateAdapterRequest:
    """Asks to change those fields that are given, and no others."""
    request = service_pb.UpdateAdapterRequest()
    request.update_mask.paths.extend(sorted(changes))
    adapter = _named(request.adapter, name)
    set_field(adapter, "etag", etag)
    adapter.labels.update(changes.get("labels") or {})
    adapter.aliases.update(changes.get("aliases") or {})
    adapter.trigger_words.extend(changes.get("trigger_words") or ())
    said: dict[str, object] = {**changes}
    for field in said.keys() - {"labels", "aliases", "trigger_words"}:
        if said[field] is not None:
            set_field(adapter, field, said[field])
    return request


def delete_adapter_request(name: str, etag: str) -> service_pb.DeleteAdapterRequest:
    """Asks to take one adapter off the shelf."""
    return _tagged(service_pb.DeleteAdapterRequest(), name, etag)


def undelete_adapter_request(name: str, etag: str) -> service_pb.UndeleteAdapterRequest:
    """Asks to put one adapter back."""
    return _tagged(service_pb.UndeleteAdapterRequest(), name, etag)


def list_audit_events_request(adapter: str) -> service_pb.ListAuditEventsRequest:
    """Asks for the first page of the audit log."""
    request = service_pb.ListAuditEventsRequest()
    set_field(request, "adapter", adapter)
    return request


def list_versions_request(name: str) -> service_pb.ListVersionsRequest:
    """Asks for the first page of an adapter's versions."""
    return _named(service_pb.ListVersionsRequest(), name)


def _named(request: Ask, name: str) -> Ask:
    set_field(request, "name", name)
    return request


def _tagged(request: Ask, name: str, etag: str) -> Ask:
    set_field(request, "etag", etag)
    return _named(request, name)


def get_upload_request(upload_id: str) -> service_pb.GetUploadRequest:
    """Asks how far an upload has come."""
    request = service_pb.GetUploadRequest()
    set_field(request, "upload_id", upload_id)
    return request


def abort_upload_request(upload_id: str) -> service_pb.AbortUploadRequest:
    """Asks to throw away what came of an upload."""
    request = service_pb.AbortUploadRequest()
    set_field(request, "upload_id", upload_id)
    return request


def download_request(adapter: str, offset: int = 0) -> service_pb.DownloadAdapterRequest:
    """Asks for the bytes of a version from offset on."""
    request = service_pb.DownloadAdapterRequest(offset=offset)
    set_field(request, "adapter", adapter)
    return request


def upload_messages(
    source: Source, spec: service_pb.UploadSpec, offset: int
) -> Iterator[service_pb.UploadAdapterRequest]:
    """The spec, then the chunks from offset on, read as asked."""
    yield service_pb.UploadAdapterRequest(spec=spec, offset=offset)
    for chunk in source.chunks(offset):
        yield service_pb.UploadAdapterRequest(chunk=chunk)


def upload_spec(source: Source, name: str, **options: Unpack[shelf.UploadOptions]) -> service_pb.UploadSpec:
    """What is uploaded and how it is to be read, under an id made of all that; what is not said stays unset."""
    spec = service_pb.UploadSpec(size_bytes=source.size, sha256=source.sha256)
    said: dict[str, object] = {"name": name, **options}
    spec.labels.update(options.get("labels") or {})
    spec.trigger_words.extend(options.get("trigger_words") or ())
    for field in said.keys() - {"labels", "trigger_words"}:
        if said[field] is not None:
            set_field(spec, field, said[field])
    # What is said makes the id: the same upload, tried again, even by another process, goes on.
    spec.upload_id = sha256(spec.SerializeToString(deterministic=True)).hexdigest()
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
        embedding=_read_embedding(message.embedding) if message.HasField("embedding") else None,
        bundled=tuple(map(_read_embedding, message.bundled)),
        device_bytes=message.device_bytes,
        notes=shelf.FileNotes(
            trigger_words=tuple(message.notes.trigger_words),
            trigger_source=message.notes.trigger_source,
            licence=message.notes.licence,
            base_model=message.notes.base_model,
        ),
    )


def _read_embedding(found: pb.Embedding) -> shelf.Embedding:
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
        licence=message.licence,
        base_model=message.base_model,
        aliases=dict(sorted(message.aliases.items())),
        etag=message.etag,
        trigger_source=message.trigger_source,
        asked_version=read_version(message.asked_version) if message.HasField("asked_version") else None,
        pins={pin.reference: read_tier(pin.tier) for pin in message.pins},
        tier=read_tier(message.tier),
    )


def read_tier(number: int) -> str:
    """Where something is; empty where the server does not say."""
    return _TIERS.get(number, f"unknown-{number}")


def read_event_page(message: service_pb.ListAuditEventsResponse) -> Page[shelf.AuditEvent]:
    """A page of the audit log."""
    return Page(tuple(map(_read_event, message.events)), message.next_page_token)


def _read_event(message: pb.AuditEvent) -> shelf.AuditEvent:
    time, version = _time(message, "time"), message.version or None
    return shelf.AuditEvent(time, message.who, message.action, message.adapter, version, message.detail)


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
        matched=tuple(map(_matched, message.matched)),
        ignored=tuple(shelf.IgnoredKey(i.key, i.reason) for i in message.ignored),
        warnings=tuple(message.warnings),
        embedding=_read_embedding(message.embedding) if message.HasField("embedding") else None,
        bundled=tuple(map(_read_embedding, message.bundled)),
    )


def _matched(message: pb.MatchedModule) -> shelf.MatchedModule:
    return shelf.MatchedModule(
        message.module,
        message.kind,
        message.rank,
        message.scale,
        message.algorithm,
        message.operation,
        message.axis,
    )


def read_upload(message: service_pb.UploadAdapterResponse) -> shelf.Upload:
    """How an upload ended."""
    return shelf.Upload(
        version=read_version(message.version) if message.HasField("version") else None,
        report=read_report(message.report),
        created=message.created,
    )


def read_upload_state(message: service_pb.UploadState) -> shelf.UploadState:
    """How far an upload has come."""
    return shelf.UploadState(
        upload_id=message.upload_id,
        received=message.received_bytes,
        size=message.size_bytes,
        expire_time=_time(message, "expire_time"),
        ended=read_upload(message.result) if message.HasField("result") else None,
    )


def read_download(message: service_pb.DownloadAdapterResponse) -> shelf.AdapterVersion | bytes | None:
    """The version, or bytes of its file; None for something a newer server tells."""
    match message.WhichOneof("message"):
        case "version":
            return read_version(message.version)
        case "chunk":
            return message.chunk
        case _:
            return None


def read_nothing(message: service_pb.AbortUploadResponse) -> None:
    """Nothing is told."""


def _time(
    message: pb.Adapter | pb.AdapterVersion | pb.AuditEvent | service_pb.UploadState, field: str
) -> datetime | None:
    stamp: Timestamp = getattr(message, field)
    return stamp.ToDatetime(tzinfo=UTC) if message.HasField(field) else None  # pyright: ignore[reportArgumentType]
