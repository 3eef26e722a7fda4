"""Bytes that are no good adapter: each is refused with its reason, and nothing else ever comes out."""

import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import adapter_files as af
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loramux_store import Store, UploadSpec
from loramux_store.errors import Refused, StoreError

PATH = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def publish(store: Store, data: bytes) -> Refused:
    """The refusal of these bytes; the store keeps nothing of them."""
    with pytest.raises(Refused) as caught, store.begin_upload(UploadSpec(name="x")) as upload:
        for start in range(0, len(data), 1 << 20):
            upload.write(data[start : start + (1 << 20)])
        upload.commit()
    assert store.list_adapters(10).items == () and store.stats().blobs == 0
    return caught.value


def good_bytes(folder: Path) -> bytes:
    return af.write(
        folder / "good.safetensors", af.kohya_tensors(af.factors(af.TOY_SD1, [PATH], alpha=2.0))
    ).read_bytes()


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


ONE = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
TWICE = b'{"t":' + ONE + b',"t":' + ONE + b"}"

CONTAINERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too_small"),
    "short": (b"123", "too_small"),
    "pickle": (pickle.dumps({"a": [1] * 100}), "pickle_not_allowed"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git_lfs_pointer"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "html_page"),
    "length bomb": (b"\xff" * 8 + b"{}", "header_len_out_of_range"),
    "length of 4 GiB": ((1 << 32).to_bytes(8, "little") + b"{}", "header_len_out_of_range"),
    "not json": (af.raw_container(b"{not json"), "header_not_json"),
    "deep": (af.raw_container(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "header_not_json"),
    "not utf8": (af.raw_container(b'{"\xff\xfe": 1}'), "header_not_utf8"),
    "no tensors": (af.raw_container({}), "empty_file"),
    "metadata only": (af.raw_container({"__metadata__": {"a": "b"}}), "empty_file"),
    "metadata of numbers": (
        af.raw_container({"__metadata__": {"a": 1}, "t": entry()}, b"1234"),
        "metadata_not_string_map",
    ),
    "duplicate key": (af.raw_container(TWICE, b"1234"), "duplicate_key"),
    "overlap": (af.raw_container({"a": entry(), "b": entry()}, b"1234"), "offset_overlap"),
    "hole": (af.raw_container({"a": entry(), "b": entry(offsets=(8, 12))}, b"1" * 12), "offset_hole"),
    "trailing": (af.raw_container({"a": entry()}, b"12345"), "trailing_bytes"),
    "truncated": (af.raw_container({"a": entry()}, b"123"), "size_mismatch"),
    "reversed": (af.raw_container({"a": entry(offsets=(4, 0))}, b"1234"), "offset_out_of_range"),
    "negative": (af.raw_container({"a": entry(offsets=(-4, 0))}, b"1234"), "tensor_info_invalid"),
    "boolean": (af.raw_container({"a": entry(shape=[True])}, b"1234"), "tensor_info_invalid"),
    "shape and range differ": (af.raw_container({"a": entry(shape=(2,))}, b"1234"), "size_mismatch"),
    "overflow": (af.raw_container({"a": entry(shape=(2**62, 4))}, b"1234"), "size_mismatch"),
    "unknown dtype": (af.raw_container({"a": entry("F7")}, b"1234"), "unknown_dtype"),
    "hostile name": (af.raw_container({"../a\0": entry()}, b"1234"), "name_illegal"),
}


@pytest.mark.parametrize("case", CONTAINERS)
def test_containers(store: Store, case: str) -> None:
    data, reason = CONTAINERS[case]
    refusal = publish(store, data)
    accepted_reasons = {reason, "tensor_info_invalid"} if case == "overflow" else {reason}
    assert refusal.reason in accepted_reasons, str(refusal)


def test_a_torch_zip_is_a_pickle(store: Store, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    assert publish(store, (tmp_path / "a.zip").read_bytes()).reason == "pickle_not_allowed"


def _tensors(*leaves: str, stem: str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k") -> dict:
    return {f"{stem}.{leaf}": torch.ones(2, 2) for leaf in leaves}


KINDS = {
    "oft": (_tensors("oft_blocks"), "unsupported_kind:oft"),
    "glora": (_tensors("a1.weight", "a2.weight", "b1.weight", "b2.weight"), "unsupported_kind:glora"),
    "ia3": (_tensors("weight", "on_input"), "unsupported_kind:ia3"),
    "lllite": (_tensors("down.0.weight", stem="lllite_unet_x"), "unsupported_kind:lllite"),
    "positional": (
        {"unet:0:up": torch.ones(2, 2), "unet:0:down": torch.ones(2, 2)},
        "unsupported_kind:positional_lora",
    ),
    "flux": (
        _tensors("lora_down.weight", "lora_up.weight", stem="lora_unet_double_blocks_0_img_attn_qkv"),
        "unsupported_family:flux",
    ),
    "half a pair": (_tensors("lora_down.weight"), "incomplete_pair"),
    "nothing known": ({"something.else": torch.ones(2, 2)}, "family_unknown"),
}


@pytest.mark.parametrize("case", KINDS)
def test_kinds_that_are_not_taken_are_named(store: Store, tmp_path: Path, case: str) -> None:
    tensors, reason = KINDS[case]
    refusal = publish(store, af.write(tmp_path / "a.safetensors", tensors).read_bytes())
    assert refusal.reason == reason, str(refusal)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_that_are_not_finite(store: Store, tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    tensors = af.kohya_tensors(af.factors(af.TOY_SD1, [PATH], alpha=2.0, dtype=dtype))
    name = next(name for name in tensors if "down" in name)
    tensors[name][-1, -1] = bad
    refusal = publish(store, af.write(tmp_path / "a.safetensors", tensors).read_bytes())
    assert refusal.reason == "non_finite" and "attn2" in str(refusal)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_refused_or_harmless(data: st.DataObject, store: Store, tmp_path: Path) -> None:
    """Flipped, cut, doubled and inserted bytes: only StoreErrors come out, and what is accepted is kept exactly."""
    whole = bytearray(good_bytes(tmp_path))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "drop", "digit"])):
            case "flip":
                whole[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del whole[max(at, 1) :]
            case "insert":
                whole[at:at] = data.draw(st.binary(min_size=1, max_size=9))
            case "drop":
                del whole[at : at + data.draw(st.integers(1, 9))]
            case _:
                whole[at] = data.draw(st.sampled_from(b'0123456789"{}[],:-'))
        if not whole:
            whole = bytearray(b"x")
    try:
        with store.begin_upload(UploadSpec(name="x")) as upload:
            upload.write(bytes(whole))
            published = upload.commit()
    except StoreError as error:
        assert isinstance(error, Refused) and error.reason
        return
    assert published.version is not None
    blob = next((tmp_path / "store" / "blobs").rglob(published.version.blob_digest))
    assert blob.read_bytes() == bytes(whole)


def test_random_bytes_are_refused(store: Store) -> None:
    dice = random.Random(5)
    for size in (10, 100, 10_000):
        publish(store, dice.randbytes(size))


def test_a_hostile_header_costs_little(tmp_path: Path) -> None:
    """16 MiB of empty tensors, in a process of its own: refused, far below what parsing would take."""
    one = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = "{" + ",".join(one % number for number in range(300_000)) + "}"
    header = header.encode()[: (16 << 20) - 1] + b"}"
    file = tmp_path / "a.safetensors"
    file.write_bytes(af.raw_container(header))
    code = (
        "import resource, sys, time; from pathlib import Path; from loramux_store.header import read_container\n"
        "from loramux_store.errors import Refused\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; cpu = time.process_time()\n"
        "try: read_container(Path(sys.argv[1]))\n"
        "except Refused as error: print(error.reason)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - cpu)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, timeout=60, check=True)
    reason, figures = done.stdout.splitlines()
    grown_kib, _seconds = map(float, figures.split())
    assert reason in ("too_many_tensors", "header_not_json") and grown_kib < 200 * 1024
