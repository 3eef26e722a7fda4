"""Random messages of any type, from its descriptor: fields that are right, at an edge, absurd or missing."""

import math
import random
import struct
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

WORDS = (
    "",
    "ink",
    "glossy",
    "nobody",
    "ink@1",
    "ink@0",
    "ink@99999999999",
    "a@b",
    "@",
    "../../etc/passwd",
    "a b",
    "\x00",
)
TEXTS = (
    *WORDS,
    "a red apple",
    "(a:1.5) [b]",
    "((((",
    "\u202e\U0001f600",
    "x" * 5000,
    "BREAK BREAK",
    "labels.a=1",
    "<ink>",
)
SIZES = (0, 1, 2, 3, 64, 100, -1, 2**31 - 1, -(2**31), 1 << 20, 7, 4096)
FLOATS = (0.0, 0.5, 1.0, -1.0, 7.5, 1e30, -1e30, math.inf, -math.inf, math.nan, 1e-45, 99.0)
_RANGES = {
    FieldDescriptor.TYPE_INT32: "<i",
    FieldDescriptor.TYPE_UINT32: "<I",
    FieldDescriptor.TYPE_INT64: "<q",
    FieldDescriptor.TYPE_UINT64: "<Q",
}


def random_message(descriptor: Descriptor, chance: random.Random, depth: int = 0) -> Message:
    """Of two in three fields nothing is said; deeper down, more."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if chance.random() < min(0.95, 0.6 + 0.1 * depth):
            continue
        if field.is_repeated:
            _fill(message, field, chance, depth)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(random_message(field.message_type, chance, depth + 1))
        else:
            setattr(message, field.name, _value(field, chance))
    return message


def _fill(message: Message, field: FieldDescriptor, chance: random.Random, depth: int) -> None:
    target, count = getattr(message, field.name), chance.choice((1, 1, 2, 3, 40))
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        for _ in range(min(count, 3)):
            key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
            if value.message_type is None:
                target[_value(key, chance)] = _value(value, chance)
    elif entry is not None:
        target.extend(random_message(entry, chance, depth + 1) for _ in range(count))
    else:
        target.extend(_value(field, chance) for _ in range(count))


def _value(field: FieldDescriptor, chance: random.Random) -> Any:
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return chance.choice(TEXTS)
        case FieldDescriptor.TYPE_BYTES:
            return chance.randbytes(chance.choice((0, 1, 10, 1000)))
        case FieldDescriptor.TYPE_BOOL:
            return chance.random() < 0.5
        case FieldDescriptor.TYPE_ENUM:
            return chance.choice([*(value.number for value in field.enum_type.values), 999])
        case FieldDescriptor.TYPE_FLOAT | FieldDescriptor.TYPE_DOUBLE:
            return chance.choice(FLOATS)
        case kind:
            form = _RANGES[kind]
            (value,) = struct.unpack(form, struct.pack("<q", chance.choice(SIZES))[: struct.calcsize(form)])
            return value


def random_bytes(message: Message, chance: random.Random) -> bytes:
    """The message, or what a broken client makes of it."""
    data = message.SerializeToString()
    match chance.random():
        case x if x < 0.85:
            return data
        case x if x < 0.9:
            return data[: chance.randrange(len(data) + 1)]
        case x if x < 0.95:
            return chance.randbytes(chance.randrange(100))
        case _:
            at = chance.randrange(len(data) + 1)
            return data[:at] + chance.randbytes(3) + data[at:]
