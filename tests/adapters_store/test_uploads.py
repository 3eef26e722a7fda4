"""Uploads that stop and go on, who may write to them, and what is let in at all."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import adapter_files as af
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loramux_store import InterpretOptions, Published, Store, Unfinished, UploadSpec
from loramux_store.errors import (
    ChecksumMismatch,
    Closed,
    InvalidArgument,
    NoSpace,
    QuotaExceeded,
    Refused,
    UploadBusy,
    UploadNotFound,
    WrongOffset,
)
from loramux_store.room import Limits

PATH = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
ID = "9c1185a5-c5e9-4fc6-8080-8977598af745"


def content(folder: Path, seed: int = 1) -> bytes:
    path = folder / f"{seed}.safetensors"
    return af.write(path, af.peft_tensors(af.factors(af.TOY_SD1, [PATH], seed=seed, rank=4))).read_bytes()


def spec(data: bytes, name: str = "x") -> UploadSpec:
    return UploadSpec(
        name=name, size_bytes=len(data), trigger_words=("zib",), labels={"a": "b"}, options=InterpretOptions(alpha=2.0)
    )


def reopened(store: Store, **options: float) -> Store:
    """The store after a restart of the server."""
    store.close()
    return Store.open(store._shelf.root, **options)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 700), max_size=3), st.booleans())
def test_an_upload_goes_on_where_it_was_left(store: Store, tmp_path: Path, cuts: list[int], restart: bool) -> None:
    data, name = content(tmp_path), f"x{len(store.list_adapters(1000).items)}"
    direct = store.publish(tmp_path / "1.safetensors", replace(spec(data), name="direct")).version
    for stop in [*sorted(min(cut, len(data) - 1) for cut in cuts), len(data)]:
        other = Store.open(store._shelf.root) if restart else store
        upload = other.begin_upload(spec(data, name), name * 8)
        upload.write(data[upload.received : stop])
        if stop < len(data):
            upload.leave()
            found = other.find_upload(name * 8)
            assert isinstance(found, Unfinished) and (found.received, found.spec) == (stop, spec(data, name))
        else:
            published = upload.commit()
            assert published.created and published.version.digest == direct.digest
            assert other.find_upload(name * 8) == published
        if other is not store:
            other.close()


def test_an_upload_that_cannot_be_resumed_leaves_nothing(store: Store, tmp_path: Path) -> None:
    upload = store.begin_upload(spec(content(tmp_path)))
    upload.write(b"some")
    upload.leave()
    assert list((tmp_path / "store" / "uploads").iterdir()) == []
    with pytest.raises(Closed):
        upload.write(b"more")


def test_an_upload_has_one_writer(store: Store, tmp_path: Path) -> None:
    data = content(tmp_path)
    first = store.begin_upload(spec(data), ID)
    with Store.open(tmp_path / "store") as another:
        for shelf in (store, another):
            with pytest.raises(UploadBusy, match=ID):
                shelf.begin_upload(spec(data), ID)
            with pytest.raises(UploadBusy):
                shelf.abort_upload(ID)
            assert shelf.find_upload(ID).received == 0
    first.write(data)
    assert first.commit().created


def test_an_upload_has_one_writer_until_it_is_told_how_it_ended(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its part is a blob by then, and a part of that name would be free."""
    data, end, refused = content(tmp_path), store._uploads.end, list[str]()

    def late(*args: Any) -> None:
        for call in (lambda: store.begin_upload(spec(data), ID, 0), lambda: store.abort_upload(ID)):
            with pytest.raises(UploadBusy) as caught:
                call()
            refused.append(caught.value.upload_id)
        end(*args)

    monkeypatch.setattr(store._uploads, "end", late)
    upload = store.begin_upload(spec(data), ID)
    upload.write(data)
    assert upload.commit().created and refused == [ID, ID]
    assert isinstance(store.find_upload(ID), Published)
    monkeypatch.undo()
    store.begin_upload(spec(data), ID).abort()


def test_the_next_byte_is_said_where_another_is_sent(store: Store, tmp_path: Path) -> None:
    data = content(tmp_path)
    for received in (0, 5):
        for offset in {-1, 0, 4, 5, 6} - {received}:
            with pytest.raises(WrongOffset) as caught:
                store.begin_upload(spec(data), ID, offset)
            assert (caught.value.offset, caught.value.received) == (offset, received)
        if not received:
            assert list((tmp_path / "store" / "uploads").iterdir()) == [], "nothing was begun"
        upload = store.begin_upload(spec(data), ID, received)
        upload.write(data[received:5])
        upload.leave()
    upload = store.begin_upload(spec(data), ID, 5)
    with pytest.raises(Refused, match="size_mismatch"):
        upload.commit()
    upload.write(data[5:])
    assert upload.commit().created, "what was missing may still come"


def test_an_id_belongs_to_one_spec(store: Store, tmp_path: Path) -> None:
    data = content(tmp_path)
    upload = store.begin_upload(spec(data), ID)
    upload.write(data[:10])
    upload.leave()
    for other in (replace(spec(data), name="y"), replace(spec(data), options=InterpretOptions(alpha=1.0))):
        with pytest.raises(InvalidArgument, match="upload_id"):
            store.begin_upload(other, ID)
    assert store.find_upload(ID).received == 10, "which is as it was"


@pytest.mark.parametrize("wrong", ["", "short", "../../../../etc/passwd", "a" * 65, "a b c d e f", "abcdefgh\n"])
def test_an_id_is_data_and_never_a_path(store: Store, tmp_path: Path, wrong: str) -> None:
    for call in (store.find_upload, store.abort_upload, lambda key: store.begin_upload(spec(b"x"), key)):
        with pytest.raises(InvalidArgument, match="upload_id"):
            call(wrong)
    store.begin_upload(spec(b"x"), "...........").leave()
    stems = {path.stem for path in (tmp_path / "store" / "uploads").iterdir()}
    assert all(len(stem) == 32 and int(stem, 16) for stem in stems)


def test_a_b_a_under_one_id_makes_three_versions(store: Store, tmp_path: Path) -> None:
    made = []
    for seed in (1, 2, 1):
        data = content(tmp_path, seed)
        with store.begin_upload(spec(data), ID) as upload:
            upload.write(data)
            made.append(upload.commit())
        assert store.find_upload(ID) == made[-1]
    assert [published.version.number for published in made] == [1, 2, 3]
    assert made[0].version.digest == made[2].version.digest != made[1].version.digest


def test_what_another_release_announced_is_no_upload(store: Store, tmp_path: Path) -> None:
    data = content(tmp_path)
    upload = store.begin_upload(spec(data), ID)
    upload.write(data[:10])
    upload.leave()
    (announced,) = (tmp_path / "store" / "uploads").glob("*.json")
    for text in ("", "{}", announced.read_text().replace("description", "depiction")):
        announced.write_text(text)
        with pytest.raises(UploadNotFound):
            store.find_upload(ID)
    with store.begin_upload(spec(data), ID, 0) as upload:
        upload.write(data)
        assert upload.commit().created


def test_an_aborted_upload_is_gone(store: Store, tmp_path: Path) -> None:
    upload = store.begin_upload(spec(content(tmp_path)), ID)
    upload.write(b"some")
    upload.leave()
    store.abort_upload(ID)
    assert list((tmp_path / "store" / "uploads").iterdir()) == []
    for call in (store.find_upload, store.abort_upload):
        with pytest.raises(UploadNotFound, match=ID):
            call(ID)


def test_a_refused_file_is_forgotten(store: Store) -> None:
    with store.begin_upload(spec(b"no adapter"), ID) as upload, pytest.raises(Refused):
        upload.write(b"no adapter")
        upload.commit()
    with pytest.raises(UploadNotFound):
        store.find_upload(ID)


def test_of_a_deleted_adapter_no_upload_is_told(store: Store, tmp_path: Path) -> None:
    data = content(tmp_path)
    with store.begin_upload(spec(data), ID) as upload:
        upload.write(data)
        assert isinstance(upload.commit(), Published)
    store.delete_adapter("x")
    with pytest.raises(UploadNotFound):
        store.find_upload(ID)


def test_what_lay_in_the_part_meanwhile_is_checked(store: Store, tmp_path: Path) -> None:
    data = content(tmp_path)
    import hashlib

    announced = replace(spec(data), sha256=hashlib.sha256(data).hexdigest())
    upload = store.begin_upload(announced, ID)
    upload.write(data[:100])
    upload.leave()
    upload.path.write_bytes(b"?" * 100)
    with store.begin_upload(announced, ID) as upload, pytest.raises(ChecksumMismatch):
        upload.write(data[100:])
        upload.commit()


def age(folder: Path, seconds: float) -> None:
    for path in (folder / "uploads").iterdir():
        os.utime(path, (time.time() - seconds,) * 2)


def test_idle_uploads_expire_but_not_under_their_writer(store: Store, tmp_path: Path) -> None:
    data = content(tmp_path)
    store = reopened(store, upload_idle_s=100.0)
    left = store.begin_upload(spec(data), ID)
    left.write(data[:10])
    left.leave()
    assert 90 < store.find_upload(ID).expire_time.timestamp() - time.time() <= 100
    held = store.begin_upload(spec(data), "another-one")
    age(tmp_path / "store", 99)
    assert store.reclaim().files == 0
    age(tmp_path / "store", 101)
    gone = store.reclaim()
    assert (gone.files, gone.bytes) == (1, 10)
    with pytest.raises(UploadNotFound):
        store.find_upload(ID)
    held.write(data)
    assert held.commit().created and isinstance(store.find_upload("another-one"), Published)
    age(tmp_path / "store", 101)
    store.reclaim()
    assert list((tmp_path / "store" / "uploads").iterdir()) == []
    store.close()


def test_the_quota_counts_files_kept_and_files_on_their_way(store: Store, tmp_path: Path) -> None:
    a, b, c = (content(tmp_path, seed) for seed in (1, 2, 7))
    assert len(a) == len(b) == len(c), "else the sums below are others"
    store = reopened(store, quota_bytes=2 * len(a))
    store.publish(tmp_path / "1.safetensors", UploadSpec(name="a"))
    waiting = store.begin_upload(spec(b, "b"), ID)
    waiting.write(b[:10])
    waiting.leave()
    with pytest.raises(QuotaExceeded) as caught:
        store.begin_upload(spec(c, "c"))
    assert (caught.value.needed, caught.value.used, caught.value.limit) == (len(c), 2 * len(a), 2 * len(a))
    assert len(list((tmp_path / "store" / "uploads").iterdir())) == 2, "nothing of it was taken"
    assert store.publish(tmp_path / "7.safetensors", UploadSpec(name="c", validate_only=True)).version is None
    known = replace(spec(a, "again"), sha256=store.resolve("a").blob_digest)
    with store.begin_upload(known) as upload:
        upload.write(a)
        assert upload.commit().created, "bytes that are there already take no room"
    store.abort_upload(ID)
    assert store.publish(tmp_path / "7.safetensors", UploadSpec(name="c")).created
    store.close()


def test_a_disk_without_room_is_asked_before_any_byte(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = content(tmp_path)
    monkeypatch.setattr("loramux_store.store.free_bytes", lambda _: 2 * len(data) - 1)
    waiting = store.begin_upload(spec(data), ID)
    with pytest.raises(NoSpace) as caught:
        store.begin_upload(spec(data))
    assert (caught.value.needed, caught.value.free) == (len(data), len(data) - 1)
    waiting.write(data[:1])
    store.begin_upload(spec(data)).abort()
    assert waiting.write(data[1:]) == len(data) and waiting.commit().created


def test_what_an_upload_became_is_never_another_file(store: Store, tmp_path: Path) -> None:
    """Numbers begin again once gc has removed an adapter."""
    for seed in (1, 2):
        data = content(tmp_path, seed)
        with store.begin_upload(spec(data, "ink"), f"upload-{seed}") as upload:
            upload.write(data)
            made = upload.commit().version
        assert made is not None and made.number == 1
        found = store.find_upload(f"upload-{seed}")
        assert isinstance(found, Published) and found.version == made
        if seed == 1:
            store.delete_adapter("ink")
            store.gc(0)
    with pytest.raises(UploadNotFound):
        store.find_upload("upload-1")


def test_a_disk_without_room_for_the_compiled_file_is_asked_before_it_is_begun(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other uploads have announced is theirs."""
    for seed in (1, 2):
        content(tmp_path, seed)
    version = store.publish(tmp_path / "1.safetensors", UploadSpec(name="a")).version
    assert version is not None
    size = store.compiled(version).stat().st_size
    store.begin_upload(spec(b"x" * 1000, "b"), ID).leave()
    monkeypatch.setattr("loramux_store.compiling.free_bytes", lambda _: size + 999)
    with monkeypatch.context() as begun, pytest.raises(NoSpace) as caught:
        begun.setattr("loramux_store.compiling.convert", lambda *_: pytest.fail("it is begun"))  # pyright: ignore[reportUnknownLambdaType]
        store.publish(tmp_path / "2.safetensors", UploadSpec(name="c"))
    assert (caught.value.needed, caught.value.free) == (size, size - 1)
    assert [adapter.name for adapter in store.list_adapters(9).items] == ["a"]
    monkeypatch.setattr("loramux_store.compiling.free_bytes", lambda _: size + 1000)
    assert store.publish(tmp_path / "2.safetensors", UploadSpec(name="c")).created


def test_unfinished_uploads_are_not_without_number(store: Store) -> None:
    store._limits = Limits(1 << 20, unfinished=3)
    for number in range(3):
        store.begin_upload(spec(b"x"), f"upload-{number}").leave()
    with pytest.raises(QuotaExceeded, match="unfinished uploads"):
        store.begin_upload(spec(b"x"), "upload-3")
    store.begin_upload(spec(b"x"), "upload-1").abort()
    store.begin_upload(spec(b"x"), "upload-3").leave()


def test_what_was_uploaded_comes_back(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loramux_store.blobs.SEND_CHUNK", 100)
    data = content(tmp_path)
    version = store.publish(tmp_path / "1.safetensors", UploadSpec(name="x")).version
    for offset in (0, 1, 99, 100, 101, len(data) - 1, len(data)):
        chunks = list(store.read_blob(version, offset))
        assert b"".join(chunks) == data[offset:] and max(map(len, chunks), default=0) <= 100
    for wrong in (-1, len(data) + 1):
        with pytest.raises(InvalidArgument, match="offset"):
            store.read_blob(version, wrong)
