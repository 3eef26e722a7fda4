"""What it costs to judge a file whose header is as large as it may be and made to be expensive.

Gives files by name, and rows: processor time and memory of judging each in a process of its own, as an upload would.
Knows no verdicts.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from loramux_server.bench.harness import Row
from loramux_store.header import MAX_METADATA
from loramux_store.header_names import MAX_NAME
from loramux_store.header_shape import MAX_TENSORS
from loramux_store.sniff import MAX_HEADER

__all__ = ["FILES", "cost", "measure"]

_DISORDER = "\u0301\u0316"
"""Marks above and below a letter: Unicode's normal forms put those below first, and take time for each exchange."""
_EMPTY = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
_STEM = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
_MODULE = {
    f"{_STEM}.lora_A.weight": {"dtype": "F32", "shape": [1, 768], "data_offsets": [0, 3072]},
    f"{_STEM}.lora_B.weight": {"dtype": "F32", "shape": [1280, 1], "data_offsets": [3072, 8192]},
}
_MODULE_BYTES = 8192
_JUDGE = """
import sys, time
from pathlib import Path
from loramux_store import InterpretOptions
from loramux_store.conversion import planned
from loramux_store.errors import Refused
from loramux_store.file_notes import notes_of
from loramux_store.formats.naming import name_table
from loramux_store.header import read_container
from loramux_store.layout import known_layouts

def kib(field):
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0])

path, layouts, reason = Path(sys.argv[1]), known_layouts(), "accepted"
for layout in layouts:
    name_table(layout)  # a server has read other files before
before, began = kib("VmRSS"), time.process_time()
try:
    container = read_container(path)
    notes_of(container.metadata, ())
    planned(container, InterpretOptions(), "a-name", layouts, None)
except Refused as error:
    reason = error.reason
print(reason, time.process_time() - began, kib("VmHWM") - before)
"""


def measure() -> list[Row]:
    """Of the costliest in time and in memory, of all."""
    costs = {name: cost(make()) for name, make in FILES.items()}
    slowest = max(costs, key=lambda name: costs[name][1])
    largest = max(costs, key=lambda name: costs[name][2])
    return [
        Row(f"refuse the costliest of {len(costs)} hostile headers: {slowest}", costs[slowest][1], "s", "<=1"),
        Row(f"memory that takes at most: {largest}", costs[largest][2], "MB", "<=200"),
    ]


def cost(data: bytes) -> tuple[str, float, float]:
    """(verdict, processor seconds, megabytes above what the process had before) of a file. Linux only."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "hostile.safetensors"
        file.write_bytes(data)
        done = subprocess.run([sys.executable, "-c", _JUDGE, file], capture_output=True, text=True, check=True)
    reason, seconds, kib = done.stdout.split()
    return reason, float(seconds), float(kib) / 1000


def _file(header: bytes, data: bytes = b"") -> bytes:
    """Of the header as much as may be."""
    if len(header) > MAX_HEADER:
        header = header[: MAX_HEADER - 1] + b"}"
    return len(header).to_bytes(8, "little") + header + data


def _filled(one: bytes, joint: bytes = b"", before: bytes = b"{", after: bytes = b"}") -> bytes:
    """As often as there is room for it."""
    room = MAX_HEADER - len(before) - len(after)
    return before + joint.join([one] * ((room + len(joint)) // (len(one) + len(joint)))) + after


def _numbered(one: bytes, count: int = 2_000_000, after: bytes = b"}") -> bytes:
    """With another number in each, as many as there is room for."""
    parts, room = list[bytes](), MAX_HEADER - 1 - len(after)
    for number in range(count):
        part = one.replace(b"%d", b"%d" % number)
        room -= len(part) + 1
        if room < 0:
            break
        parts.append(part)
    return b"{" + b",".join(parts) + after


def _named(names: Iterator[str]) -> bytes:
    """Empty tensors under names."""
    tensors = (json.dumps(name, ensure_ascii=False).encode() + b":" + _EMPTY for name in names)
    return b"{" + b",".join(tensors) + b"}"


def _long(pattern: str, end: str = "") -> Callable[[], bytes]:
    """As many names of as many bytes as may be; pattern: repeated in the middle."""

    def name(number: int) -> str:
        room = MAX_NAME - len(f"{number:05}{end}".encode())
        middle = (pattern * room).encode()[:room].decode(errors="ignore")
        return f"{middle}{number:05}{end}"

    return lambda: _named(name(number) for number in range(MAX_TENSORS))


def _marked(number: int) -> str:
    """A name of letters with marks, of which no other name has one."""
    pairs = range(90 * number, 90 * (number + 1))
    return f"{number:05}" + "".join(chr(0x4E00 + n % 20_000) + chr(0x300 + n // 20_000) for n in pairs)


def _metadata(key: str, one: bytes, joint: bytes = b",") -> Callable[[], bytes]:
    """A LoRA of one module, and as much metadata as may be: JSON in one string, of numbered parts."""

    def make() -> bytes:
        parts, room = list[bytes](), MAX_METADATA - len(key) - 2
        while room > len(one) + 8:
            parts.append(one.replace(b"%d", b"%d" % len(parts)))
            room -= len(parts[-1]) + len(joint)
        text = "{" + joint.join(parts).decode() + "}"
        return _file(json.dumps({"__metadata__": {key: text}, **_MODULE}).encode(), bytes(_MODULE_BYTES))

    return make


_HEADERS: Mapping[str, Callable[[], bytes]] = {
    "nested arrays": lambda: _filled(b"[", before=b'{"a":'),
    "nested objects": lambda: _filled(b'{"a":', before=b""),
    "brackets in order": lambda: _filled(b"[]", b",", b'{"a":[', b"]}"),
    "objects in order": lambda: _filled(b"{}", b",", b'{"a":[', b"]}"),
    "one name": lambda: _filled(b"a", before=b'{"', after=b'":' + _EMPTY + b"}"),
    "one string of metadata": lambda: _filled(b"a", before=b'{"__metadata__":{"a":"', after=b'"}}'),
    "a million keys": lambda: _numbered(b'"%d":0'),
    "a million tensors": lambda: _numbered(b'"%d":' + _EMPTY),
    "one name again and again": lambda: _numbered(b'"a":' + _EMPTY, MAX_TENSORS),
    "one integer": lambda: _filled(b"9", before=b'{"a":{"dtype":"F32","data_offsets":[0,0],"shape":[', after=b"]}}"),
    "many integers": lambda: _filled(b"9" * 19, b",", b'{"a":{"shape":[', b"]}}"),
    "one float": lambda: _filled(b"9", before=b'{"a":0.'),
    "escapes": lambda: _filled(b"\\u0061", before=b'{"', after=b'":' + _EMPTY + b"}"),
    "lone surrogates": lambda: _filled(b"\\ud800", before=b'{"', after=b'":' + _EMPTY + b"}"),
    "backslashes": lambda: _filled(b"\\\\", before=b'{"', after=b'":' + _EMPTY + b"}"),
    "quotes": lambda: _filled(b'\\"', before=b'{"', after=b'":' + _EMPTY + b"}"),
    "a string without an end": lambda: _filled(b"a", before=b'{"', after=b""),
    "spaces": lambda: _filled(b" "),
    "bytes that are no text": lambda: _filled(b"\xff", before=b'{"'),
    "keys and values of metadata": lambda: b'{"__metadata__":' + _numbered(b'"%d":""', 90_000) + b"}",
    "many fields": lambda: b'{"a":' + _numbered(b'"%d":0', 190_000) + b"}",
    "long names": _long("lora_unet_", ".lora_down.weight"),
    "names of many parts": _long("a."),
    "names with one foreign letter": _long("\u00e4" + "a" * 600),
    "names in another script": _long("\u00e4"),
    "names with wide spaces": _long("a\u00a0"),
    "marks out of order, one name": lambda: _filled(_DISORDER.encode(), before=b'{"a', after=b'":' + _EMPTY + b"}"),
    "marks out of order, 20,000 names": _long(_DISORDER),
    "letters that may be composed": _long("\u1f80", "\u0345"),
    "letters with marks": _long("\u0101\u0316"),
    "letters with marks, each another": lambda: _named(map(_marked, range(MAX_TENSORS))),
    "names of a VAE, nearly": _long("encoder.conv"),
    "names of a checkpoint, nearly": _long("unet.down_blocks."),
    "names of processors": _long(".processor.to_q_lora.down.weight"),
    "names of bundles": _long("bundle_emb.clip_l.string_to_param", ".x"),
    "names of modules": lambda: _named(
        f"lora_unet_{n}.{leaf}" for n in range(5000) for leaf in ("alpha", "diff", "diff_b", "dora_scale")
    ),
}
FILES: Mapping[str, Callable[[], bytes]] = {
    **{name: (lambda make=make: _file(make())) for name, make in _HEADERS.items()},
    "configs of many components": _metadata("lora_adapter_metadata", b'"%d.r":1'),
    "a config of many patterns": _metadata("lora_adapter_metadata", b'"unet.%d":{}'),
    "a nested config": _metadata("lora_adapter_metadata", b'"unet.r":[', b""),
    "folders": _metadata("ss_dataset_dirs", b'"1_%d":0'),
    "tags": _metadata("ss_tag_frequency", b'"%d":{"a":1}'),
    "nested tags": _metadata("ss_tag_frequency", b'"a":[', b""),
}
