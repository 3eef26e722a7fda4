"""The calls there are: one value for each, the same for the sync and the asyncio client.

Takes: nothing. Gives: path, encoding, decoding and reading of each call. Does not know channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from loramux.v1 import adapter_pb2, adapter_service_pb2, generation_pb2, generation_service_pb2
from loramux_client import adapter_messages, picture_messages, tier_messages
from loramux_client.server_info import Health

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)
Out = TypeVar("Out")


@dataclass(frozen=True, slots=True)
class Rpc(Generic[Req, Res, Out]):
    """A call: where it goes, how its messages are made into bytes and back, and what they mean."""

    path: str
    encode: Callable[[Req], bytes]
    decode: Callable[[bytes], Res]
    read: Callable[[Res], Out]

    @property
    def of_a_shelf(self) -> bool:
        """Whether it is about the adapters of one server."""
        return self.path.startswith(_ADAPTERS)


def _rpc(path: str, asks: type[Req], answers: type[Res], read: Callable[[Res], Out]) -> Rpc[Req, Res, Out]:
    return Rpc(path, asks.SerializeToString, answers.FromString, read)


def _read_health(message: Int32Value) -> Health:
    return Health(message.value) if message.value in list(Health) else Health.UNKNOWN


_GENERATION, _ADAPTERS = "/loramux.v1.GenerationService/", "/loramux.v1.AdapterService/"

GENERATE = _rpc(
    _GENERATION + "Generate",
    generation_pb2.GenerateRequest,
    generation_pb2.GenerateResponse,
    picture_messages.read_generation,
)
GENERATE_STREAM = _rpc(
    _GENERATION + "GenerateStream",
    generation_pb2.GenerateRequest,
    generation_pb2.GenerateEvent,
    picture_messages.read_event,
)
GET_SERVER_INFO = _rpc(
    _GENERATION + "GetServerInfo",
    generation_service_pb2.GetServerInfoRequest,
    generation_pb2.ServerInfo,
    picture_messages.read_server_info,
)
UPLOAD_ADAPTER = _rpc(
    _ADAPTERS + "UploadAdapter",
    adapter_service_pb2.UploadAdapterRequest,
    adapter_service_pb2.UploadAdapterResponse,
    adapter_messages.read_upload,
)
GET_UPLOAD = _rpc(
    _ADAPTERS + "GetUpload",
    adapter_service_pb2.GetUploadRequest,
    adapter_service_pb2.UploadState,
    adapter_messages.read_upload_state,
)
ABORT_UPLOAD = _rpc(
    _ADAPTERS + "AbortUpload",
    adapter_service_pb2.AbortUploadRequest,
    adapter_service_pb2.AbortUploadResponse,
    adapter_messages.read_nothing,
)
DOWNLOAD_ADAPTER = _rpc(
    _ADAPTERS + "DownloadAdapter",
    adapter_service_pb2.DownloadAdapterRequest,
    adapter_service_pb2.DownloadAdapterResponse,
    adapter_messages.read_download,
)
GET_ADAPTER = _rpc(
    _ADAPTERS + "GetAdapter",
    adapter_service_pb2.GetAdapterRequest,
    adapter_pb2.Adapter,
    adapter_messages.read_adapter,
)
LIST_ADAPTERS = _rpc(
    _ADAPTERS + "ListAdapters",
    adapter_service_pb2.ListAdaptersRequest,
    adapter_service_pb2.ListAdaptersResponse,
    adapter_messages.read_adapter_page,
)
LIST_VERSIONS = _rpc(
    _ADAPTERS + "ListVersions",
    adapter_service_pb2.ListVersionsRequest,
    adapter_service_pb2.ListVersionsResponse,
    adapter_messages.read_version_page,
)
UPDATE_ADAPTER = _rpc(
    _ADAPTERS + "UpdateAdapter",
    adapter_service_pb2.UpdateAdapterRequest,
    adapter_pb2.Adapter,
    adapter_messages.read_adapter,
)
DELETE_ADAPTER = _rpc(
    _ADAPTERS + "DeleteAdapter",
    adapter_service_pb2.DeleteAdapterRequest,
    adapter_pb2.Adapter,
    adapter_messages.read_adapter,
)
UNDELETE_ADAPTER = _rpc(
    _ADAPTERS + "UndeleteAdapter",
    adapter_service_pb2.UndeleteAdapterRequest,
    adapter_pb2.Adapter,
    adapter_messages.read_adapter,
)
PRELOAD_ADAPTER = _rpc(
    _ADAPTERS + "PreloadAdapter",
    adapter_service_pb2.PreloadAdapterRequest,
    adapter_service_pb2.PreloadAdapterResponse,
    tier_messages.read_preloaded,
)
PIN_ADAPTER = _rpc(
    _ADAPTERS + "PinAdapter",
    adapter_service_pb2.PinAdapterRequest,
    adapter_pb2.Adapter,
    adapter_messages.read_adapter,
)
UNPIN_ADAPTER = _rpc(
    _ADAPTERS + "UnpinAdapter",
    adapter_service_pb2.UnpinAdapterRequest,
    adapter_pb2.Adapter,
    adapter_messages.read_adapter,
)
LIST_AUDIT_EVENTS = _rpc(
    _ADAPTERS + "ListAuditEvents",
    adapter_service_pb2.ListAuditEventsRequest,
    adapter_service_pb2.ListAuditEventsResponse,
    adapter_messages.read_event_page,
)
# The messages of grpc.health.v1 are one string (field 1) and one enum (field 1). On the wire those
# are StringValue and Int32Value, so the plain install needs no grpcio-health-checking.
CHECK_HEALTH = _rpc("/grpc.health.v1.Health/Check", StringValue, Int32Value, _read_health)

SAFE_TO_REPEAT = (GET_SERVER_INFO, GET_ADAPTER, GET_UPLOAD, LIST_ADAPTERS, LIST_VERSIONS, LIST_AUDIT_EVENTS)
"""Calls that change nothing and cost little: the channel may try them again. GENERATE, which its request id makes safe
to repeat, is not among them: the channel knows neither how often it may be tried nor how long a refusal says to wait.
patience.py does."""
