"""Bytes that are no good adapter: each is refused with its reason, and nothing else ever comes out."""

import random
from pathlib import Path

import adapter_files as af
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loramux_server.bench import hostile
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


HEADERS = {
    "nested arrays": "header_not_json",
    "one integer": "tensor_info_invalid",
    "names with one foreign letter": "family_unknown",
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
