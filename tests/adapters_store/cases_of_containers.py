"""The table of cases: containers and hostile bytes (formats.md 4.7, 1.16, 3.1)."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable

import adapter_files as af
import safetensors.torch
import torch
from cases import DOWN, KEY, Accepted, Case, Elsewhere, Refusal, Rows, good

__all__ = ["CONTAINERS"]


def _bytes(data: bytes, reason: str, key: str | None = None, says: str = "") -> Callable[[], Case]:
    return lambda: Case(data, Refusal(reason, key, says))


def _header(header: object, data: bytes, reason: str, key: str | None = None, says: str = "") -> Callable[[], Case]:
    return _bytes(af.raw_container(header, data), reason, key, says)


def _entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def _one(entry: dict[str, object], reason: str, key: str | None = "a", data: bytes = b"1234") -> Callable[[], Case]:
    return _header({"a": entry}, data, reason, key)


def _zipped(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, b"x" * 100)
    return out.getvalue()


def _accepted(change: Callable[[dict[str, dict[str, object]], bytes], bytes], **expected: object) -> Case:
    """A good file with another header."""
    raw = safetensors.torch.save(good())
    size = int.from_bytes(raw[:8], "little")
    deltas = {KEY: af.dense(af.factors(af.TOY_SD1, [KEY], rank=2, alpha=1.0)[KEY])}
    return Case(change(json.loads(raw[8 : 8 + size]), raw[8 + size :]), Accepted(deltas, **expected))  # type: ignore[arg-type]


def _misaligned(header: dict[str, dict[str, object]], data: bytes) -> bytes:
    """An odd counter of one byte before everything else."""
    shifted: dict[str, dict[str, object]] = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]  # type: ignore[misc]
        shifted[name] = entry | {"data_offsets": [begin + 1, end + 1]}
    counter = {"position_ids": _entry("U8", (1,), (0, 1))}
    return af.raw_container(counter | shifted, b"\0" + data)


def _value(bad: float, dtype: torch.dtype = torch.float32) -> Callable[[], Case]:
    def make() -> Case:
        tensors = good()
        tensors[DOWN][-1, -1] = bad
        stored = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        return Case(stored, Refusal("non_finite", DOWN, KEY))

    return make


_ONE = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
_TWICE = b'{"t":' + _ONE + b',"t":' + _ONE + b"}"
_IN_METADATA = b'{"__metadata__":{"a":"1","a":"2"},"t":' + _ONE + b"}"
_MANY = json.dumps({str(at): _entry("F32", [0], [0, 0]) for at in range(20_001)}).encode()
_NAMES = ["", "../x", "a\0", "x" * 513, "😀", "__proto__", "constructor", "a\u202eb", "a\u200bb", "a\\..\\b", "e\u0301"]

CONTAINERS: Rows = {
    "H2 a Git LFS pointer": _bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git_lfs_pointer"),
    "H2 a page": _bytes(b"<!DOCTYPE html><html><body>404</body></html>", "html_page"),
    "H2 a page without doctype": _bytes(b"\n<HTML><body>404</body></HTML>", "html_page"),
    "H2 an answer of an API": _bytes(b'{"error":"Access to model is restricted"}', "html_page"),
    "H4 2^64 - 1": _bytes(b"\xff" * 8 + b"{}", "header_len_out_of_range"),
    "H4 2^32": _bytes((1 << 32).to_bytes(8, "little") + b"{}", "header_len_out_of_range"),
    "H4 8 + N goes round": _bytes((2**64 - 6).to_bytes(8, "little") + b"{}", "header_len_out_of_range"),
    "H4 one more than there is": _bytes((20 - 7).to_bytes(8, "little") + b"{" + b" " * 11, "header_len_out_of_range"),
    "H6 two names on one range": _header({"a": _entry(), "b": _entry()}, b"1234", "offset_overlap", "b"),
    "H6 ranges that overlap": _header(
        {"a": _entry("F32", [2], [0, 8]), "b": _entry(offsets=[4, 8])}, b"12345678", "offset_overlap", "b"
    ),
    "H6 a hole": _header({"a": _entry(), "b": _entry(offsets=(8, 12))}, b"1" * 12, "offset_hole", "b"),
    "H6 a hole at the beginning": _one(_entry(offsets=(4, 8)), "offset_hole", data=b"12345678"),
    "H6 reversed": _one(_entry(offsets=(4, 0)), "offset_out_of_range"),
    "H6 negative": _one(_entry(offsets=(-4, 0)), "tensor_info_invalid"),
    "H6 beyond the end": _one(_entry(), "size_mismatch", None, b"123"),
    "H6 trailing bytes": _one(_entry(), "trailing_bytes", None, b"12345"),
    "H6 shape and range differ": _one(_entry(shape=(2,)), "size_mismatch"),
    "H6 a shape that overflows": _one(_entry(shape=(2**62, 4)), "size_mismatch"),
    "H8 F7": _one(_entry("F7"), "unknown_dtype"),
    "H8 F8_E9": _one(_entry("F8_E9", [4]), "unknown_dtype"),
    "H10 misaligned": lambda: _accepted(_misaligned, ignored=("position_ids",), warnings=("ignored",)),
    "H12 a space after the brace": lambda: _accepted(
        lambda header, data: af.raw_container(b"{ " + json.dumps(header).encode()[1:], data)
    ),
    "H12 padded with spaces": lambda: _accepted(
        lambda header, data: af.raw_container(json.dumps(header).encode() + b" " * 13, data)
    ),
    "H14 NaN": _value(float("nan")),
    "H14 Inf in fp16": _value(float("inf"), torch.float16),
    "H14 -Inf in bf16": _value(float("-inf"), torch.bfloat16),
    "H14 NaN in fp64": _value(float("nan"), torch.float64),
    "H14 NaN in fp8": _value(float("nan"), torch.float8_e4m3fn),
    "H16 nothing unpickles": Elsewhere("tests/adapters_store/test_cases.py::test_nothing_can_unpickle"),
    **{f"H18 {name[:20]!a}": _header({name: _entry()}, b"1234", "name_illegal", ascii(name[:100])) for name in _NAMES},
    "H18 one name after normalisation": _header(
        {"\u00e9": _entry(), "e\u0301": _entry(offsets=[4, 8])}, b"12345678", "duplicate_key", "e\u0301"
    ),
    "H18 one name twice": _header(_TWICE, b"1234", "duplicate_key", "t"),
    "H18 one name of metadata twice": _header(_IN_METADATA, b"1234", "duplicate_key", "a"),
    "H20 nested": _header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", "header_not_json"),
    "H20 1e400": _header(b'{"t":' + _ONE.replace(b"[1]", b"[1e400]") + b"}", b"1234", "tensor_info_invalid", "t"),
    "H20 a float": _one(_entry(shape=[1.0]), "tensor_info_invalid"),
    "H20 a bool": _one(_entry(shape=[True]), "tensor_info_invalid"),
    "H20 a string": _one(_entry(offsets=["0", "4"]), "tensor_info_invalid"),
    "H20 a missing field": _one({"dtype": "F32", "shape": [1]}, "tensor_info_invalid"),
    "H20 no object": _header({"a": 5}, b"", "tensor_info_invalid", "a"),
    "H20 a dtype that is a number": _one(_entry(5), "tensor_info_invalid"),
    "H20 nine dimensions": _one(_entry(shape=[1] * 9), "tensor_info_invalid"),
    "H22 a pickle": _bytes(pickle.dumps({"a": [1] * 100}), "pickle_not_allowed"),
    "H22 a pickle of protocol 2": _bytes(pickle.dumps([1] * 100, 2), "pickle_not_allowed"),
    "H22 a torch archive": _bytes(_zipped("archive/data.pkl"), "pickle_not_allowed"),
    "H22 a tar": _bytes(b"x" * 257 + b"ustar" + b"\0" * 300, "pickle_not_allowed"),
    "H24 no fallback": Elsewhere(
        "tests/adapters_store/test_cases.py::test_a_pickle_beside_a_broken_file_is_not_looked_at"
    ),
    # rules of sections 1.16, 1.17 and 3.1 that no report is about
    "empty": _bytes(b"", "too_small"),
    "short": _bytes(b"123", "too_small"),
    "another archive": _bytes(_zipped("model.safetensors"), "archive_not_allowed"),
    "GGUF": _bytes(b"GGUF" + b"\0" * 100, "unsupported_container:gguf"),
    "HDF5": _bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "unsupported_container:hdf5"),
    "ONNX": _bytes(b"\x08\x07\x12\x07pytorch" + b"\0" * 100, "unsupported_container:onnx"),
    "a length that begins like a pickle": lambda: _accepted(
        lambda header, data: af.raw_container(json.dumps(header).encode().ljust(640), data)
    ),
    "not JSON": _header(b"{not json", b"", "header_not_json"),
    "a header that begins otherwise": _bytes(af.raw_container(b' {"a":1}'), "header_not_json"),
    "not UTF-8": _header(b'{"\xff\xfe": 1}', b"", "header_not_utf8"),
    "no tensors": _header({}, b"", "empty_file"),
    "metadata only": _header({"__metadata__": {"a": "b"}}, b"", "empty_file"),
    "metadata of numbers": _header({"__metadata__": {"a": 1}, "t": _entry()}, b"1234", "metadata_not_string_map", "a"),
    "metadata a list": _header({"__metadata__": [], "t": _entry()}, b"1234", "metadata_not_string_map"),
    "5 MiB of metadata": _header(
        {"__metadata__": {"a": "x" * (5 << 20)}, "t": _entry()}, b"1234", "metadata_too_large"
    ),
    "20,001 tensors": _bytes(af.raw_container(_MANY), "too_many_tensors", "20000"),
}  # fmt: skip
