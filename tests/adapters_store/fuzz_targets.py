"""What a fuzzer feeds: bytes in, and everything that must hold of whatever comes out.

Takes an input whose first byte names one of TARGETS; raises AssertionError, or whatever a reader should not have let
out. Knows neither the fuzzer nor the corpus.

| first byte | the rest is |
|---|---|
| c | a file as it is |
| h | the JSON of a header; length and data are made to fit |
| t | lines, of which a whole file is made: see `lines_to_file` |
| p | an adapter_config.json |
| m | the `lora_adapter_metadata` of a file |
"""

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import adapter_files as af
import safetensors

from loramux_store import InterpretOptions, Layout
from loramux_store.compiled_file import is_current
from loramux_store.conversion import convert, planned
from loramux_store.errors import InvalidArgument, Refused
from loramux_store.file_notes import notes_of
from loramux_store.formats.peft_config import PeftConfig, parse_config, parse_metadata
from loramux_store.formats.plan import Plan
from loramux_store.header import DTYPE_BYTES, Container, read_container
from loramux_store.owner_words import MAX_TEXT, MAX_WORDS
from loramux_store.report_json import options_from_json, options_to_json, report_from_json, report_to_json
from loramux_store.verdict import judge

__all__ = ["MAX_DATA", "TARGETS", "Asked", "lines_to_file", "outcome", "run"]

MAX_DATA = 1 << 18
"""Bytes of tensors that an input may ask for."""
MAX_SAID = 2000
"""Characters of a refusal: it is sent in the trailers of a call, which have room for 8 KiB."""
PATH = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"

Outcome = tuple[str, object]


@dataclass(frozen=True, slots=True)
class Asked:
    """A file, how it is to be read, and what it must be for."""

    file: bytes
    options: InterpretOptions
    wanted: Layout | None


def run(data: bytes) -> bool:
    """Feed one input to its target; False for one that has none."""
    target = TARGETS.get(data[:1])
    if target is None:
        return False
    target(data[1:])
    return True


def container(data: bytes) -> None:
    """A file as it is."""
    path = _written(data)
    kind, found = _said_of(lambda: read_container(path))
    if kind == "accepted":
        _check_table(found, data)
    _check_file(path, InterpretOptions())


def header(data: bytes) -> None:
    """A header that the rest of the file fits."""
    container(af.raw_container(data, b"\x3c" * _claimed(data)))


def lines(data: bytes) -> None:
    """A whole file."""
    asked = lines_to_file(data)
    if asked is not None:
        path = _written(asked.file)
        _check_file(path, asked.options, asked.wanted)
        _check_file(path, InterpretOptions())


def config(data: bytes) -> None:
    """An adapter_config.json."""
    text = data.decode("utf-8", "surrogateescape")
    kind, found = _said_of(lambda: parse_config(text))
    if kind == "accepted":
        _check_config(found)
        options = InterpretOptions(peft_config=text)
        canonical = options_to_json(options)
        assert options_to_json(options_from_json(canonical)) == canonical


def metadata(data: bytes) -> None:
    """The configs that diffusers writes into a file."""
    text = data.decode("utf-8", "replace")
    kind, found = _said_of(lambda: parse_metadata(text))
    if kind == "accepted":
        assert isinstance(found, dict)
        for each in found.values():
            _check_config(each)
    notes = notes_of({"ss_dataset_dirs": text, "ss_tag_frequency": text, "modelspec.license": text}, ())
    assert len(notes.trigger_words) <= MAX_WORDS
    for said in (*notes.trigger_words, notes.licence, notes.base_model):
        assert len(said) <= MAX_TEXT
        said.encode()


TARGETS: Mapping[bytes, Callable[[bytes], None]] = {
    b"c": container, b"h": header, b"t": lines, b"p": config, b"m": metadata,
}  # fmt: skip


def lines_to_file(data: bytes) -> Asked | None:
    """A whole file and what is asked of it; None where it would be larger than MAX_DATA.

    `@KEY VALUE` is metadata, `!BYTE` what the data of the tensors that follow are full of, `?alpha`, `?trigger` and
    `?peft` are options, `?layout` what it must be for; any other line is a tensor: `DTYPE 4,8 NAME`.
    """
    body: dict[str, object] = {}
    said: dict[str, str] = {}
    options: dict[str, str] = {}
    filling, content, at = b"\x3c", list[bytes](), 0
    for line in data.decode("utf-8", "replace").splitlines():
        first, _, rest = line.partition(" ")
        if first[:1] == "@":
            said[first[1:]] = rest
        elif first[:1] == "?":
            options[first[1:]] = rest
        elif first[:1] == "!":
            filling = b"\xff" if first[1:] == "ff" else first[1:2].encode()[:1] or filling
        else:
            shape, _, name = rest.partition(" ")
            sizes = [int(size) for size in shape.split(",") if size.isascii() and size.isdigit() and len(size) < 19]
            size = math.prod(sizes) * DTYPE_BYTES.get(first, 1)
            if at + size > MAX_DATA:
                return None
            body[name] = {"dtype": first, "shape": sizes, "data_offsets": [at, at + size]}
            content.append(filling * size)
            at += size
    whole = {"__metadata__": said, **body} if said else body
    wanted = next((layout for layout in af.TOYS if layout.name == options.get("layout")), None)
    return Asked(af.raw_container(whole, b"".join(content)), _options(options), wanted)


def outcome(asked: Asked) -> Outcome:
    """("accepted", what became of the file) or ("refused", why)."""
    path = _written(asked.file)
    return _said_of(lambda: _compiled(path, asked.options, asked.wanted))


def _options(said: Mapping[str, str]) -> InterpretOptions:
    try:
        alpha = float(said["alpha"]) if "alpha" in said else None
    except ValueError:
        alpha = None
    alpha = alpha if alpha is None or math.isfinite(alpha) else None
    return InterpretOptions(said.get("peft"), alpha, said.get("trigger"))


def _claimed(data: bytes) -> int:
    """How many bytes of data a header speaks of, at most MAX_DATA."""
    try:
        body = json.loads(data)
        ends = [info["data_offsets"][1] for name, info in body.items() if name != "__metadata__"]
        return max(0, min(MAX_DATA, max(ends)))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return 0


def _said_of(act: Callable[[], object]) -> Outcome:
    """("accepted", what came of it) or ("refused", what was said)."""
    try:
        return "accepted", act()
    except Refused as error:
        _check_sayable(error.reason, *error.detail, *error.detail.values(), str(error))
        return "refused", (error.reason, str(error), error.detail)
    except InvalidArgument as error:
        _check_sayable(error.field, error.expected, str(error))
        return "refused", (error.field, str(error))


def _check_sayable(*texts: str) -> None:
    for text in texts:
        assert len(text) <= MAX_SAID, len(text)
        text.encode()


def _check_table(found: object, data: bytes) -> None:
    """What is accepted is read the same by the library of the format, where that accepts it."""
    assert isinstance(found, Container)
    try:
        theirs = dict(safetensors.deserialize(data))
    except safetensors.SafetensorError:  # it knows other dtypes, and wants offsets to be aligned
        return
    for name, entry in found.tensors.items():
        their = theirs[name]
        assert (their["dtype"], tuple(their["shape"])) == (entry.dtype, entry.shape)
        assert bytes(their["data"]) == data[entry.begin : entry.end]
    assert theirs.keys() == found.tensors.keys()


def _check_file(path: Path, options: InterpretOptions, wanted: Layout | None = None) -> None:
    """Accepted or refused, twice the same; an accepted file becomes a compiled file that is as it says."""
    verdict = judge(path, options, af.TOYS, wanted)
    assert verdict == judge(path, options, af.TOYS, wanted)
    _check_sayable(*filter(None, (verdict.reason, verdict.key, verdict.family)), *verdict.evidence)
    kind, made = _said_of(lambda: _compiled(path, options, wanted))
    assert (kind == "accepted") == (verdict.verdict == "accepted")
    if kind == "accepted":
        assert made == _compiled(path, options, wanted)


def _compiled(path: Path, options: InterpretOptions, wanted: Layout | None) -> tuple[str, bytes, object]:
    """Report, compiled file and warnings."""
    plan = planned(read_container(path), options, "a-name", af.TOYS, wanted)
    parts: list[bytes] = []
    warnings = convert(plan, lambda part: parts.append(bytes(part)))
    report = report_to_json(plan.report)
    assert report_to_json(report_from_json(report)) == report
    assert report.encode()
    notes_of(plan.container.metadata, plan.report.embeddings)
    data = af.sealed(b"".join(parts))
    _check_compiled(plan, data)
    return report, data, warnings


def _check_compiled(plan: Plan, data: bytes) -> None:
    path = _written(data, "compiled")
    assert is_current(path, {module.module: module.rank for module in plan.report.matched}, plan.report.embeddings)


def _check_config(found: object) -> None:
    assert isinstance(found, PeftConfig)
    for value in (found.alpha(PATH), found.rank(PATH, f"text_model.{PATH}")):
        assert value is None or math.isfinite(value)


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="loramux-fuzz-"))


def _written(data: bytes, name: str = "file") -> Path:
    path = _folder() / name
    path.write_bytes(data)
    return path
