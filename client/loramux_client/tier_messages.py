"""Tiers and pins to protobuf and back.

Takes: references and tiers, messages to read. Gives: messages to send, plain values. Does not know channels or calls.
"""

from __future__ import annotations

from loramux.v1 import adapter_pb2 as pb
from loramux.v1 import adapter_service_pb2 as service_pb
from loramux_client import shelf
from loramux_client.adapter_messages import read_tier, read_version
from loramux_client.errors import InvalidArgument, Violation
from loramux_client.picture_messages import set_field

_NUMBERS: dict[str, pb.Tier] = {"host": pb.TIER_HOST, "device": pb.TIER_DEVICE}


def preload_request(reference: str, tier: str) -> service_pb.PreloadAdapterRequest:
    """Asks to bring a version into a tier."""
    request = service_pb.PreloadAdapterRequest(tier=_number(tier))
    set_field(request, "adapter", reference)
    return request


def pin_request(reference: str, tier: str) -> service_pb.PinAdapterRequest:
    """Asks to keep what a reference means in a tier."""
    request = service_pb.PinAdapterRequest(tier=_number(tier))
    set_field(request, "adapter", reference)
    return request


def unpin_request(reference: str) -> service_pb.UnpinAdapterRequest:
    """Asks to keep it no longer."""
    request = service_pb.UnpinAdapterRequest()
    set_field(request, "adapter", reference)
    return request


def read_preloaded(message: service_pb.PreloadAdapterResponse) -> shelf.Preloaded:
    """What was brought in."""
    return shelf.Preloaded(read_version(message.version), read_tier(message.tier))


def _number(tier: str) -> pb.Tier:
    if tier not in _NUMBERS:
        wrong = Violation("tier", f"is {tier!r}, expected host or device")
        raise InvalidArgument(f"tier: {wrong.description}", reason="UNSENDABLE", violations=[wrong])
    return _NUMBERS[tier]
