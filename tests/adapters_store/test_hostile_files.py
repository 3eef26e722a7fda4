"""Bytes that are no good adapter: each is refused with its reason, and nothing else ever comes out."""

import random
import sys
import unicodedata
from pathlib import Path

import adapter_files as af
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loramux_server.bench import hostile
from loramux_store import Store, UploadSpec, header_names
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


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


HEADERS = {
    "nested arrays": "header_not_json",
    "one integer": "tensor_info_invalid",
    "names with one foreign letter": "family_unknown",
    "marks out of order, one name": "name_illegal",
    "marks out of order, 20,000 names": "name_illegal",
    "letters that may be composed": "family_unknown",
    "letters with marks": "family_unknown",
    "letters with marks, each another": "name_illegal",
    "names of a VAE, nearly": "family_unknown",
    "configs of many components": "accepted",
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_header_costs_little(name: str) -> None:
    """In a process of its own: within a second, which on a busy machine may look like three, and within 200 MB."""
    verdict, seconds, megabytes = hostile.cost(hostile.FILES[name]())
    assert verdict == HEADERS[name] and seconds < 3 and megabytes < 200


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(hostile.FILES.keys() - HEADERS.keys()))
def test_every_hostile_header_costs_little(name: str) -> None:
    _, seconds, megabytes = hostile.cost(hostile.FILES[name]())
    assert seconds < 3 and megabytes < 200


TENSOR = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
MARKED: dict[str, tuple[str, bytes]] = {
    "no JSON": ("header_not_json", b'{"a\xc3\xa4":^,1}'),
    "too deep": ("header_not_json", b'{"a\\"[{":[[^[1]]],"b":[]}'),
    "another letter first": ("header_not_json", b"^[1]                "),
    "no text": ("header_not_utf8", b'{"a^\xff":1}'),
    "too many tensors": ("too_many_tensors", b"{" + b",".join([b'"{a":' + TENSOR] * 20_001) + b',"b":^{}}'),
    "too many strings": ("too_many_tensors", b"{" + b'"a":"",' * 100_000 + b'^"a":"b"}'),
    "too many lists": ("tensor_info_invalid", b'{"a":[' + b"[]" * 40_003 + b"^[]]}"),
    "too many commas": ("tensor_info_invalid", b'{"a":[' + b"0," * 370_000 + b"0^,0]}"),
}


@pytest.mark.parametrize("name", MARKED)
def test_the_byte_at_fault_is_told(store: Store, name: str) -> None:
    """It stands behind the mark."""
    reason, marked = MARKED[name]
    refused = publish(store, af.raw_container(marked.replace(b"^", b"")))
    assert (refused.reason, refused.detail.get("byte")) == (reason, str(8 + marked.index(b"^")))


def test_what_may_join_the_letter_before_it_is_known() -> None:
    """Everything that normal form C puts together or in order, by Python's own tables."""
    for number in range(sys.maxunicode + 1):
        letter = chr(number)
        parts = unicodedata.decomposition(letter).split()
        names = [f"a\u0345{letter}", f"a{letter}\u0334"] if unicodedata.combining(letter) else []
        if len(parts) == 2 and parts[0][0] != "<":
            names.append("".join(chr(int(part, 16)) for part in parts))
        for name in names:
            assert _unnormal(name) == (not unicodedata.is_normalized("NFC", name)), ascii(name)


@settings(max_examples=300)
@given(
    name=st.text(
        alphabet="aq=\u1f80\u0101\uac00\u1100\u212b\u0928\u304b\u0301\u0316\u0338\u0345\u0344\u1161\u11a8\u093c\u3099"
    )
)
def test_names_are_in_normal_form_where_python_says_so(name: str) -> None:
    assert _unnormal(name) == (not unicodedata.is_normalized("NFC", name))


def _unnormal(name: str) -> bool:
    return header_names.unnormal([name], set(name)) is not None
