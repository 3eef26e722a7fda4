import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AdapterKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_KIND_UNSPECIFIED: _ClassVar[AdapterKind]
    ADAPTER_KIND_LORA: _ClassVar[AdapterKind]
    ADAPTER_KIND_EMBEDDING: _ClassVar[AdapterKind]

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    TIER_DISK: _ClassVar[Tier]
    TIER_HOST: _ClassVar[Tier]
    TIER_DEVICE: _ClassVar[Tier]
ADAPTER_KIND_UNSPECIFIED: AdapterKind
ADAPTER_KIND_LORA: AdapterKind
ADAPTER_KIND_EMBEDDING: AdapterKind
TIER_UNSPECIFIED: Tier
TIER_DISK: Tier
TIER_HOST: Tier
TIER_DEVICE: Tier

class Pin(_message.Message):
    __slots__ = ("reference", "tier")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    reference: str
    tier: Tier
    def __init__(self, reference: _Optional[str] = ..., tier: _Optional[_Union[Tier, str]] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("trigger", "vectors", "widths")
    class WidthsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    TRIGGER_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    WIDTHS_FIELD_NUMBER: _ClassVar[int]
    trigger: str
    vectors: int
    widths: _containers.ScalarMap[str, int]
    def __init__(self, trigger: _Optional[str] = ..., vectors: _Optional[int] = ..., widths: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Adapter(_message.Message):
    __slots__ = ("name", "latest_version", "labels", "default_weight", "trigger_words", "description", "create_time", "update_time", "delete_time", "licence", "base_model", "aliases", "etag", "trigger_source", "asked_version", "pins", "tier")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class AliasesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    LATEST_VERSION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_WORDS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    DELETE_TIME_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_SOURCE_FIELD_NUMBER: _ClassVar[int]
    ASKED_VERSION_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    name: str
    latest_version: AdapterVersion
    labels: _containers.ScalarMap[str, str]
    default_weight: float
    trigger_words: _containers.RepeatedScalarFieldContainer[str]
    description: str
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    delete_time: _timestamp_pb2.Timestamp
    licence: str
    base_model: str
    aliases: _containers.ScalarMap[str, int]
    etag: str
    trigger_source: str
    asked_version: AdapterVersion
    pins: _containers.RepeatedCompositeFieldContainer[Pin]
    tier: Tier
    def __init__(self, name: _Optional[str] = ..., latest_version: _Optional[_Union[AdapterVersion, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., default_weight: _Optional[float] = ..., trigger_words: _Optional[_Iterable[str]] = ..., description: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., delete_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., licence: _Optional[str] = ..., base_model: _Optional[str] = ..., aliases: _Optional[_Mapping[str, int]] = ..., etag: _Optional[str] = ..., trigger_source: _Optional[str] = ..., asked_version: _Optional[_Union[AdapterVersion, _Mapping]] = ..., pins: _Optional[_Iterable[_Union[Pin, _Mapping]]] = ..., tier: _Optional[_Union[Tier, str]] = ...) -> None: ...

class FileNotes(_message.Message):
    __slots__ = ("trigger_words", "trigger_source", "licence", "base_model")
    TRIGGER_WORDS_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_SOURCE_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    trigger_words: _containers.RepeatedScalarFieldContainer[str]
    trigger_source: str
    licence: str
    base_model: str
    def __init__(self, trigger_words: _Optional[_Iterable[str]] = ..., trigger_source: _Optional[str] = ..., licence: _Optional[str] = ..., base_model: _Optional[str] = ...) -> None: ...

class AuditEvent(_message.Message):
    __slots__ = ("time", "who", "action", "adapter", "version", "detail")
    TIME_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    who: str
    action: str
    adapter: str
    version: int
    detail: str
    def __init__(self, time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., who: _Optional[str] = ..., action: _Optional[str] = ..., adapter: _Optional[str] = ..., version: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...

class AdapterVersion(_message.Message):
    __slots__ = ("adapter", "number", "digest", "blob_digest", "size_bytes", "kind", "layout", "layout_digest", "rank", "create_time", "embedding", "device_bytes", "notes", "bundled")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BLOB_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    BUNDLED_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    number: int
    digest: str
    blob_digest: str
    size_bytes: int
    kind: AdapterKind
    layout: str
    layout_digest: str
    rank: int
    create_time: _timestamp_pb2.Timestamp
    embedding: Embedding
    device_bytes: int
    notes: FileNotes
    bundled: _containers.RepeatedCompositeFieldContainer[Embedding]
    def __init__(self, adapter: _Optional[str] = ..., number: _Optional[int] = ..., digest: _Optional[str] = ..., blob_digest: _Optional[str] = ..., size_bytes: _Optional[int] = ..., kind: _Optional[_Union[AdapterKind, str]] = ..., layout: _Optional[str] = ..., layout_digest: _Optional[str] = ..., rank: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., embedding: _Optional[_Union[Embedding, _Mapping]] = ..., device_bytes: _Optional[int] = ..., notes: _Optional[_Union[FileNotes, _Mapping]] = ..., bundled: _Optional[_Iterable[_Union[Embedding, _Mapping]]] = ...) -> None: ...

class AcceptReport(_message.Message):
    __slots__ = ("family", "layout", "evidence", "matched", "ignored", "warnings", "embedding", "bundled")
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    MATCHED_FIELD_NUMBER: _ClassVar[int]
    IGNORED_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    BUNDLED_FIELD_NUMBER: _ClassVar[int]
    family: str
    layout: str
    evidence: _containers.RepeatedScalarFieldContainer[str]
    matched: _containers.RepeatedCompositeFieldContainer[MatchedModule]
    ignored: _containers.RepeatedCompositeFieldContainer[IgnoredKey]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    embedding: Embedding
    bundled: _containers.RepeatedCompositeFieldContainer[Embedding]
    def __init__(self, family: _Optional[str] = ..., layout: _Optional[str] = ..., evidence: _Optional[_Iterable[str]] = ..., matched: _Optional[_Iterable[_Union[MatchedModule, _Mapping]]] = ..., ignored: _Optional[_Iterable[_Union[IgnoredKey, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., embedding: _Optional[_Union[Embedding, _Mapping]] = ..., bundled: _Optional[_Iterable[_Union[Embedding, _Mapping]]] = ...) -> None: ...

class MatchedModule(_message.Message):
    __slots__ = ("module", "kind", "rank", "scale", "algorithm", "operation", "axis")
    MODULE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    AXIS_FIELD_NUMBER: _ClassVar[int]
    module: str
    kind: str
    rank: int
    scale: float
    algorithm: str
    operation: str
    axis: str
    def __init__(self, module: _Optional[str] = ..., kind: _Optional[str] = ..., rank: _Optional[int] = ..., scale: _Optional[float] = ..., algorithm: _Optional[str] = ..., operation: _Optional[str] = ..., axis: _Optional[str] = ...) -> None: ...

class IgnoredKey(_message.Message):
    __slots__ = ("key", "reason")
    KEY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    key: str
    reason: str
    def __init__(self, key: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...
