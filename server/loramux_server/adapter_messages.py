"""Messages of the adapter service to the store's frozen values and back, field by field; nothing else.

Takes and gives records of the store. It knows no request for pictures.
"""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from loramux.v1 import adapter_pb2, adapter_service_pb2
from loramux_server.errors import InvalidRequest, Violation
from loramux_server.tiers import Place
from loramux_store.record import (
    AcceptReport,
    AdapterChange,
    AdapterRecord,
    AuditEvent,
    Embedding,
    InterpretOptions,
    Published,
    Tier,
    UploadSpec,
    VersionSummary,
)
from loramux_store.uploads import Unfinished

KIND_NUMBERS = {"lora": adapter_pb2.ADAPTER_KIND_LORA, "embedding": adapter_pb2.ADAPTER_KIND_EMBEDDING}
_PLACES: dict[Place, adapter_pb2.Tier] = {
    "disk": adapter_pb2.TIER_DISK,
    "host": adapter_pb2.TIER_HOST,
    "device": adapter_pb2.TIER_DEVICE,
}
_CHANGEABLE = ("labels", "default_weight", "trigger_words", "description", "licence", "base_model", "aliases")


def upload_spec(message: adapter_service_pb2.UploadSpec) -> UploadSpec:
    """What an upload announces.

    Raises:
        InvalidRequest: where a required field is missing.
    """
    if message.size_bytes <= 0:
        raise InvalidRequest((Violation("spec.size_bytes", f"is {message.size_bytes}, expected more than 0"),))
    if not message.sha256:
        raise InvalidRequest((Violation("spec.sha256", "is empty, expected 64 hexadecimal digits"),))
    return UploadSpec(
        name=message.name,
        size_bytes=message.size_bytes,
        sha256=message.sha256,
        layout=message.layout or None,
        options=InterpretOptions(
            peft_config=message.peft_config if message.HasField("peft_config") else None,
            alpha=message.alpha if message.HasField("alpha") else None,
            trigger=message.trigger if message.HasField("trigger") else None,
        ),
        labels=dict(message.labels),
        default_weight=message.default_weight if message.HasField("default_weight") else None,
        trigger_words=tuple(message.trigger_words),
        description=message.description,
        licence=message.licence,
        base_model=message.base_model,
        validate_only=message.validate_only,
    )


def upload_response(published: Published) -> adapter_service_pb2.UploadAdapterResponse:
    """How an upload ended."""
    return adapter_service_pb2.UploadAdapterResponse(
        version=None if published.version is None else version(published.version),
        report=report(published.report),
        created=published.created,
    )


def upload_state(upload_id: str, found: Unfinished | Published) -> adapter_service_pb2.UploadState:
    """How far an upload has come, or what it became."""
    state = adapter_service_pb2.UploadState(upload_id=upload_id)
    if isinstance(found, Unfinished):
        state.received_bytes, state.size_bytes = found.received, found.spec.size_bytes or 0
        state.expire_time.CopyFrom(_timestamp(found.expire_time))
    elif found.version is not None:
        state.received_bytes = state.size_bytes = found.version.size_bytes
        state.result.CopyFrom(upload_response(found))
    return state


def report(found: AcceptReport) -> adapter_pb2.AcceptReport:
    """What the store found in a file."""
    return adapter_pb2.AcceptReport(
        family=found.family,
        layout=found.layout_name,
        evidence=found.evidence,
        matched=[
            adapter_pb2.MatchedModule(
                module=m.module,
                kind=m.kind,
                rank=m.rank,
                scale=m.scale,
                algorithm=m.algorithm,
                operation=m.operation,
                axis=m.axis,
            )
            for m in found.matched
        ],
        ignored=[adapter_pb2.IgnoredKey(key=key, reason=reason) for key, reason in found.ignored],
        warnings=found.warnings,
        embedding=None if found.embedding is None else _embedding(found.embedding),
        bundled=map(_embedding, found.bundled),
    )


def _embedding(found: Embedding) -> adapter_pb2.Embedding:
    return adapter_pb2.Embedding(trigger=found.trigger, vectors=found.vectors, widths=found.widths)


def adapter(record: AdapterRecord, place: Place, asked: VersionSummary | None = None) -> adapter_pb2.Adapter:
    """A named thing on the shelf. place: where its latest version is; asked: the version that it was looked up by."""
    return adapter_pb2.Adapter(
        name=record.name,
        latest_version=version(record.latest_version),
        labels=record.labels,
        default_weight=record.default_weight,
        trigger_words=record.trigger_words,
        trigger_source=record.trigger_source,
        description=record.description,
        licence=record.licence,
        base_model=record.base_model,
        aliases=record.aliases,
        etag=record.etag,
        create_time=_timestamp(record.create_time),
        update_time=_timestamp(record.update_time),
        delete_time=None if record.delete_time is None else _timestamp(record.delete_time),
        asked_version=None if asked is None else version(asked),
        pins=[adapter_pb2.Pin(reference=reference, tier=_PLACES[tier]) for reference, tier in record.pins.items()],
        tier=_PLACES[place],
    )


def version(record: VersionSummary) -> adapter_pb2.AdapterVersion:
    """One immutable version."""
    return adapter_pb2.AdapterVersion(
        adapter=record.adapter,
        number=record.number,
        digest=record.digest,
        blob_digest=record.blob_digest,
        size_bytes=record.size_bytes,
        kind=KIND_NUMBERS[record.kind],
        layout=record.layout_name,
        layout_digest=record.layout_digest,
        rank=record.rank,
        device_bytes=record.device_bytes,
        create_time=_timestamp(record.create_time),
        embedding=None if record.embedding is None else _embedding(record.embedding),
        bundled=map(_embedding, record.bundled),
        notes=adapter_pb2.FileNotes(
            trigger_words=record.notes.trigger_words,
            trigger_source=record.notes.source,
            licence=record.notes.licence,
            base_model=record.notes.base_model,
        ),
    )


def adapter_change(request: adapter_service_pb2.UpdateAdapterRequest) -> AdapterChange:
    """What to change: the fields of the mask, or without one those that are not empty.

    Raises:
        InvalidRequest: where the mask names a field that cannot be changed.
    """
    adapter, paths = request.adapter, set(request.update_mask.paths)
    if unknown := sorted(paths - {"*", *_CHANGEABLE}):
        expected = f"* or some of {', '.join(_CHANGEABLE)}"
        raise InvalidRequest((Violation("update_mask", f"names {', '.join(unknown)}, expected {expected}"),))
    if not paths:
        paths = {field.name for field, _ in adapter.ListFields()} & set(_CHANGEABLE)
    elif "*" in paths:
        paths = set(_CHANGEABLE)
    weight = adapter.default_weight if adapter.HasField("default_weight") else None
    return AdapterChange(
        labels=dict(adapter.labels) if "labels" in paths else None,
        default_weight=weight if "default_weight" in paths else None,
        clear_default_weight="default_weight" in paths and weight is None,
        trigger_words=tuple(adapter.trigger_words) if "trigger_words" in paths else None,
        description=adapter.description if "description" in paths else None,
        licence=adapter.licence if "licence" in paths else None,
        base_model=adapter.base_model if "base_model" in paths else None,
        aliases=dict(adapter.aliases) if "aliases" in paths else None,
    )


def tier(asked: adapter_pb2.Tier) -> Tier:
    """Where to bring or keep something; the device where nothing is said.

    Raises:
        InvalidRequest: it is neither host nor device.
    """
    match asked:
        case adapter_pb2.TIER_HOST:
            return "host"
        case adapter_pb2.TIER_DEVICE | adapter_pb2.TIER_UNSPECIFIED:
            return "device"
        case _:
            said = adapter_pb2.Tier.Name(asked) if asked in adapter_pb2.Tier.values() else str(asked)
            raise InvalidRequest((Violation("tier", f"is {said}, expected TIER_HOST or TIER_DEVICE"),))


def preloaded(record: VersionSummary, place: Place) -> adapter_service_pb2.PreloadAdapterResponse:
    """What was brought in, and where it is."""
    return adapter_service_pb2.PreloadAdapterResponse(version=version(record), tier=_PLACES[place])


def audit_event(event: AuditEvent) -> adapter_pb2.AuditEvent:
    """A change of the shelf."""
    return adapter_pb2.AuditEvent(
        time=_timestamp(event.time),
        who=event.who,
        action=event.action,
        adapter=event.adapter,
        version=event.version or 0,
        detail=event.detail,
    )


def _timestamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp
