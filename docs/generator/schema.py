"""The schema with its comments, as protoc reads it.

Takes the folder of the .proto files; gives services, messages and enums as plain values, in the order of the files. It
does not know how they are shown.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

# Numbers of fields in descriptor.proto, of which the paths of comments are made.
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
_FIELDS, _NESTED, _NESTED_ENUMS, _ONEOFS = 2, 3, 4, 8
_VALUES = _METHODS = 2

_Path = tuple[int, ...]


class SchemaError(Exception):
    """The schema cannot be read, or something in it has no comment."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field. type: full name of a message or enum, or a scalar's; key: of a map, the type of its keys; label:
    empty, optional or repeated; oneof: what it is an alternative of; above: what is said of it and those that follow.
    """

    name: str
    number: int
    type: str
    key: str
    label: str
    oneof: str
    text: str
    above: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message; name is without the package, oneofs are {name: comment}."""

    name: str
    text: str
    fields: tuple[Field, ...]
    oneofs: dict[str, str]


@dataclass(frozen=True, slots=True)
class Enum:
    """One enum; values are (name, number, comment)."""

    name: str
    text: str
    values: tuple[tuple[str, int, str], ...]


@dataclass(frozen=True, slots=True)
class Rpc:
    """One method; asks and answers are full names of messages."""

    name: str
    text: str
    asks: str
    asks_stream: bool
    answers: str
    answers_stream: bool


@dataclass(frozen=True, slots=True)
class Service:
    """One service by its full name."""

    name: str
    text: str
    rpcs: tuple[Rpc, ...]


@dataclass(frozen=True, slots=True)
class Schema:
    """All files together."""

    services: tuple[Service, ...]
    messages: tuple[Message, ...]
    enums: tuple[Enum, ...]


def read(folder: Path) -> Schema:
    """What the .proto files below a folder say.

    Raises:
        SchemaError: where protoc refuses a file, or something has no comment: with its name.
    """
    readers = [_File(file) for file in _described(folder)]
    return Schema(
        tuple(service for reader in readers for service in reader.services()),
        tuple(message for reader in readers for message in reader.messages()),
        tuple(enum for reader in readers for enum in reader.enums()),
    )


def _described(folder: Path) -> list[FileDescriptorProto]:
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "set"
        protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", "--include_source_info"]
        done = subprocess.run([*protoc, f"--descriptor_set_out={out}", *names], stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise SchemaError(f"protoc refuses the schema: {done.stderr.strip()}")
        return list(FileDescriptorSet.FromString(out.read_bytes()).file)


class _File:
    """One file; every part is known by its path in the descriptor."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._said = {tuple(place.path): place for place in file.source_code_info.location}

    def services(self) -> Iterator[Service]:
        for at, service in enumerate(self._file.service):
            yield self._service(service, (_SERVICES, at))

    def messages(self) -> Iterator[Message]:
        for at, message in enumerate(self._file.message_type):
            yield from self._message(message, (_MESSAGES, at), "")

    def enums(self) -> Iterator[Enum]:
        for at, enum in enumerate(self._file.enum_type):
            yield self._enum(enum, (_ENUMS, at), "")
        for at, message in enumerate(self._file.message_type):
            for inner, enum in enumerate(message.enum_type):
                yield self._enum(enum, (_MESSAGES, at, _NESTED_ENUMS, inner), f"{message.name}.")

    def _service(self, service: ServiceDescriptorProto, path: _Path) -> Service:
        name = f"{self._file.package}.{service.name}"
        rpcs = tuple(
            Rpc(
                method.name,
                self._text((*path, _METHODS, at), f"{name}.{method.name}"),
                method.input_type.removeprefix("."),
                method.client_streaming,
                method.output_type.removeprefix("."),
                method.server_streaming,
            )
            for at, method in enumerate(service.method)
        )
        return Service(name, self._text(path, name), rpcs)

    def _message(self, message: DescriptorProto, path: _Path, outer: str) -> Iterator[Message]:
        name = f"{outer}{message.name}"
        maps = {inner.name: inner for inner in message.nested_type if inner.options.map_entry}
        alternatives = [one.name for one in message.oneof_decl]
        fields = tuple(
            self._field(field, (*path, _FIELDS, at), name, maps, alternatives, first=at == 0)
            for at, field in enumerate(message.field)
        )
        oneofs = {
            one: self._text((*path, _ONEOFS, at), f"{name}.{one}")
            for at, one in enumerate(alternatives)
            if not one.startswith("_")  # protoc's own, of an optional field
        }
        yield Message(name, self._text(path, name), fields, oneofs)
        for at, inner in enumerate(message.nested_type):
            if inner.name not in maps:
                yield from self._message(inner, (*path, _NESTED, at), f"{name}.")

    def _field(
        self,
        field: FieldDescriptorProto,
        path: _Path,
        message: str,
        maps: dict[str, DescriptorProto],
        alternatives: Sequence[str],
        *,
        first: bool,
    ) -> Field:
        entry = maps.get(field.type_name.rpartition(".")[2])
        repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
        in_oneof = field.HasField("oneof_index") and not field.proto3_optional
        above = "\n\n".join(self._said[path].leading_detached_comments)
        if first:  # protoc takes what stands right below the brace for the message's
            above = "\n\n".join(filter(None, (self._said[path[:-2]].trailing_comments, above)))
        return Field(
            field.name,
            field.number,
            _type(field if entry is None else entry.field[1]),
            "" if entry is None else _type(entry.field[0]),
            "" if entry is not None else "repeated" if repeated else "optional" if field.proto3_optional else "",
            alternatives[field.oneof_index] if in_oneof else "",
            self._text(path, f"{message}.{field.name}"),
            _lines(above),
        )

    def _enum(self, enum: EnumDescriptorProto, path: _Path, outer: str) -> Enum:
        name = f"{outer}{enum.name}"
        values = tuple(
            (value.name, value.number, self._text((*path, _VALUES, at), f"{name}.{value.name}"))
            for at, value in enumerate(enum.value)
        )
        return Enum(name, self._text(path, name), values)

    def _text(self, path: _Path, name: str) -> str:
        if not (text := _lines(self._said[path].leading_comments)):
            raise SchemaError(f"{name} in {self._file.name} has no comment")
        return text


def _type(field: FieldDescriptorProto) -> str:
    scalar = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    return field.type_name.removeprefix(".") or scalar


def _lines(comment: str) -> str:
    """Paragraphs, each on a line."""
    paragraphs = "\n".join(line.strip() for line in comment.splitlines()).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs).strip()
