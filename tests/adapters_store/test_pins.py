"""Pins on the shelf: by reference as spelled, gone with their adapter and back with it, in backups, never a fault."""

import time
from collections.abc import Iterator
from pathlib import Path

import adapter_files as af
import pytest

from loramux_store import AdapterChange, Pin, Store, UploadSpec, back_up, restore
from loramux_store.errors import InvalidArgument, NotFound, PinNotFound

PATHS = ("unet.mid_block.attentions.0.proj_in",)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """a of two versions with an alias prod for the first, and b."""
    with Store.open(tmp_path / "store") as opened:
        for layout in af.TOYS:
            opened.register_layout(layout)
        for seed, name in ((1, "a"), (2, "a"), (3, "b")):
            file = af.write(tmp_path / f"{seed}.safetensors", af.peft_tensors(af.factors(af.TOY_SD1, PATHS, seed=seed)))
            opened.publish(file, UploadSpec(name=name))
        opened.update_adapter("a", AdapterChange(aliases={"prod": 1}))
        yield opened


def test_every_reference_is_a_pin_of_its_own(store: Store) -> None:
    for ref, tier in (("a@prod", "host"), ("a", "device"), ("a@2", "host"), ("b", "host")):
        record = store.pin_adapter(ref, tier)
    assert record.pins == {"b": "host"}
    assert store.get_adapter("a").pins == {"a": "device", "a@2": "host", "a@prod": "host"}
    assert [listed.pins for listed in store.list_adapters(10).items][1] == {"b": "host"}
    assert store.pins() == [Pin("a@prod", "host"), Pin("a", "device"), Pin("a@2", "host"), Pin("b", "host")]
    store.unpin_adapter("a@2")
    store.pin_adapter("a@prod", "device")
    assert store.get_adapter("a").pins == {"a": "device", "a@prod": "device"}


def test_what_changes_nothing_leaves_etag_and_log_as_they_were(store: Store) -> None:
    before = store.get_adapter("a")
    first = store.pin_adapter("a@prod", "host", who="ada")
    assert store.pin_adapter("a@prod", "host", who="ada") == first and first.etag != before.etag
    store.pin_adapter("a@prod", "device", who="ben")
    store.unpin_adapter("a@prod", who="cy")
    told = [(event.who, event.action, event.detail) for event in store.list_events(3, adapter="a").items]
    assert told == [
        ("cy", "unpin", "a@prod: device -> none"),
        ("ben", "pin", "a@prod: host -> device"),
        ("ada", "pin", "a@prod: none -> host"),
    ]


def test_what_cannot_be_pinned_or_unpinned_is_told(store: Store) -> None:
    store.pin_adapter("a", "host")
    for ref in ("c", "a@3", "a@test"):
        with pytest.raises(NotFound, match=ref.partition("@")[2] or "'c'"):
            store.pin_adapter(ref, "host")
    with pytest.raises(InvalidArgument, match="tier: got 'disk', expected one of host, device"):
        store.pin_adapter("a", "disk")  # type: ignore[arg-type]
    with pytest.raises(PinNotFound, match=r"'a@1' is not pinned; pinned: a$"):
        store.unpin_adapter("a@1")
    with pytest.raises(PinNotFound, match="pinned: none"):
        store.unpin_adapter("b")
    assert store.pins() == [Pin("a", "host")]


def test_a_pin_outlives_the_alias_that_it_names(store: Store) -> None:
    store.pin_adapter("a@prod", "host")
    store.update_adapter("a", AdapterChange(aliases={}))
    assert store.pins() == [Pin("a@prod", "host")]
    assert store.unpin_adapter("a@prod").pins == {}


def test_deleting_ends_pins_and_undeleting_brings_them_back(store: Store) -> None:
    store.pin_adapter("a", "device")
    assert store.delete_adapter("a").pins == {"a": "device"}
    assert store.pins() == []
    with pytest.raises(NotFound, match="deleted"):
        store.unpin_adapter("a")
    store.undelete_adapter("a")
    assert store.pins() == [Pin("a", "device")]


def test_pins_survive_a_restart_and_a_backup_and_go_with_the_rows(store: Store, tmp_path: Path) -> None:
    store.pin_adapter("a@1", "host")
    back_up(tmp_path / "store", tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored")
    for folder in ("store", "restored"):
        with Store.open(tmp_path / folder) as again:
            assert again.pins() == [Pin("a@1", "host")]
            again.fsck(full=True, repair=True)  # compiled files are in no backup
            assert again.fsck(full=True) == ()
    store.delete_adapter("a")
    time.sleep(0.01)
    assert store.gc(0).adapters == ("a",)
    assert store.fsck(full=True) == () and store.pins() == []
