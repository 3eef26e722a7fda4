"""Preloading and pinning over the wire, and loads that hold up nobody but who waits for them."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from random_adapters import random_adapter
from wire import WireServer

from loramux.v1 import adapter_pb2
from loramux.v1 import adapter_service_pb2 as pb
from loramux_client import Client
from loramux_client.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from loramux_server.engine.compiled_reader import HostAdapter
from loramux_store import UploadSpec

Wait = Callable[[Callable[[], object]], None]


class Shelf:
    """A server with small adapters on its shelf, and a client of it."""

    def __init__(self, base: Path, folder: Path, **settings: object) -> None:
        self.base, self.folder, self.settings = base, folder, settings
        self.open()

    def open(self) -> None:
        self.server = WireServer(self.base, self.folder / "store", **self.settings)
        ready = self.server._ready.result(20)
        self.client = Client(f"{ready.host}:{ready.grpc_port}", who="ada")
        self.adapters = self.server.app.engine.adapters

    def close(self) -> None:
        self.client.close()
        self.server.close()

    def publish(self, name: str, seed: int, rank: int = 4) -> None:
        made = random_adapter(
            self.base, self.folder, f"{name}-{seed}", rank=rank, alpha=rank, strength=0.5, seed=seed, parts=("attn",)
        )
        self.client.upload(made.file, name)

    def digest(self, reference: str) -> str:
        return self.server.app.store.resolve(reference).digest

    def place(self, reference: str) -> str:
        digest = self.digest(reference)
        return "device" if self.adapters.has(digest) else "host" if self.adapters.host.has(digest) else "disk"

    def clear(self) -> None:
        """Everything out that nothing keeps."""
        self.adapters.evict_unused()

    def left(self, reference: str) -> str:
        """Where it is once that is done."""
        self.clear()
        return self.place(reference)


@pytest.fixture
def shelf(tiny_base: Path, tmp_path: Path) -> Iterator[Shelf]:
    """a of two versions with the alias prod on the first, and b."""
    made = Shelf(tiny_base, tmp_path)
    for name, seed in (("a", 1), ("a", 2), ("b", 3)):
        made.publish(name, seed)
    made.client.update_adapter("a", aliases={"prod": 1})
    yield made
    made.close()


def test_preloading_brings_a_version_to_the_tier_and_keeps_it_not(shelf: Shelf) -> None:
    assert shelf.client.get_adapter("a").tier == "disk"
    loaded = shelf.client.preload_adapter("a@prod", "host")
    assert (loaded.version.number, loaded.tier) == (1, "host") and shelf.place("a@1") == "host"
    assert shelf.client.preload_adapter("a").tier == "device" and shelf.place("a") == "device"
    assert shelf.client.get_adapter("a").tier == "device" and shelf.place("b") == "disk"
    assert shelf.server.metric("adapter_load_seconds_count", stage="read") == 2
    assert shelf.server.metric("adapter_load_seconds_count", stage="copy") == 1
    shelf.clear()
    assert shelf.place("a") == shelf.place("a@1") == "disk"


def test_many_who_preload_one_version_have_it_read_once(shelf: Shelf) -> None:
    with ThreadPoolExecutor(8) as threads:
        tiers = list(threads.map(lambda tier: shelf.client.preload_adapter("b", tier).tier, ["host", "device"] * 8))
    assert set(tiers) <= {"host", "device"}
    assert shelf.server.metric("adapter_load_seconds_count", stage="read") == 1


def test_what_cannot_be_loaded_is_told(shelf: Shelf, other_tiny_base: Path, tmp_path: Path) -> None:
    other = Shelf(other_tiny_base, tmp_path / "other")
    shelf.server.app.store.register_layout(other.server.app.engine.layout)
    foreign = random_adapter(
        other_tiny_base, tmp_path, "foreign", rank=4, alpha=4, strength=1.0, seed=1, parts=("attn",)
    )
    other.close()
    shelf.server.app.store.publish(foreign.file, UploadSpec(name="foreign"))
    for ask in (shelf.client.preload_adapter, shelf.client.pin_adapter):
        with pytest.raises(NotFound, match="'c'"):
            ask("c")
        with pytest.raises(NotFound, match="has no alias 'test'"):
            ask("a@test", "host")
        with pytest.raises(FailedPrecondition, match="adapter foreign@1 is for the layout") as caught:
            ask("foreign")
        assert caught.value.reason == "LAYOUT_MISMATCH"
        with pytest.raises(InvalidArgument, match="adapter: got '', expected 1 to 64"):
            ask("")
    for ask, request in (
        (shelf.server.shelf.PreloadAdapter, pb.PreloadAdapterRequest(adapter="a", tier=adapter_pb2.TIER_DISK)),
        (shelf.server.shelf.PinAdapter, pb.PinAdapterRequest(adapter="a", tier=adapter_pb2.TIER_DISK)),
    ):
        with pytest.raises(grpc.RpcError, match="tier: is TIER_DISK, expected TIER_HOST or TIER_DEVICE"):
            ask(request)
    with pytest.raises(NotFound) as caught_too:
        shelf.client.unpin_adapter("a")
    assert caught_too.value.reason == "PIN_NOT_FOUND"
    assert shelf.server.app.store.pins() == []


def test_a_damaged_file_fails_the_preload_and_leaves_nothing(shelf: Shelf) -> None:
    version = shelf.server.app.store.resolve("b")
    shelf.server.app.store.compiled(version).unlink()
    next((shelf.folder / "store" / "blobs").rglob(version.blob_digest)).unlink()
    with pytest.raises(Exception, match="adapter b@1 cannot be loaded"):
        shelf.client.preload_adapter("b")
    with pytest.raises(Exception, match="adapter b@1 cannot be loaded"):
        shelf.client.pin_adapter("b", "host")
    assert not shelf.adapters.host._entries and not shelf.adapters.device._pinned
    assert shelf.client.get_adapter("b").pins == {}


def test_what_is_pinned_stays_and_nothing_else(shelf: Shelf) -> None:
    assert shelf.client.pin_adapter("a@prod").pins == {"a@prod": "device"}
    assert shelf.client.pin_adapter("b", "host").pins == {"b": "host"}
    shelf.client.preload_adapter("a@2")
    shelf.clear()
    assert [shelf.place(reference) for reference in ("a@1", "a@2", "b")] == ["device", "disk", "host"]
    assert shelf.server.metric("adapters_pinned", tier="device") == 1
    assert shelf.server.metric("adapters_pinned", tier="host") == 1
    listed = {adapter.name: (adapter.pins, adapter.tier) for adapter in shelf.client.list_adapters()}
    assert listed == {"a": ({"a@prod": "device"}, "disk"), "b": ({"b": "host"}, "host")}
    actions = [(event.action, event.adapter, event.who[:3]) for event in shelf.client.list_audit_events()]
    assert actions[:2] == [("pin", "b", "ada"), ("pin", "a", "ada")]


def test_a_pin_follows_what_its_reference_means(shelf: Shelf, wait_for: Wait) -> None:
    """A new version, another version under the alias, an alias that goes: each by itself."""
    for reference in ("a", "a@prod"):
        shelf.client.pin_adapter(reference)

    def kept() -> list[str]:
        shelf.clear()
        return [shelf.place("a@1"), shelf.place("a@2")]

    assert kept() == ["device", "device"]
    shelf.publish("a", 4)
    wait_for(lambda: kept() == ["device", "disk"] and shelf.place("a@3") == "device")
    shelf.client.update_adapter("a", aliases={"prod": 2})
    wait_for(lambda: kept() == ["disk", "device"])
    shelf.client.update_adapter("a", aliases={})
    wait_for(lambda: kept() == ["disk", "disk"])
    wait_for(lambda: shelf.server.metric("adapter_pins_unmet") == 1)
    assert shelf.place("a@3") == "device" and shelf.client.get_adapter("a").pins.keys() == {"a", "a@prod"}
    shelf.client.update_adapter("a", aliases={"prod": 1})
    wait_for(lambda: shelf.place("a@1") == "device" and shelf.server.metric("adapter_pins_unmet") == 0)


def test_unpinning_and_another_tier_let_go(shelf: Shelf, wait_for: Wait) -> None:
    shelf.client.pin_adapter("b")
    shelf.client.pin_adapter("b", "host")
    wait_for(lambda: shelf.left("b") == "host")
    shelf.client.unpin_adapter("b")
    wait_for(lambda: shelf.left("b") == "disk")
    assert not shelf.adapters.device._pinned and not shelf.adapters.host._pinned


def test_deleting_ends_what_pins_hold_and_undeleting_brings_it_back(shelf: Shelf, wait_for: Wait) -> None:
    shelf.client.pin_adapter("b")
    shelf.client.pin_adapter("a@1", "host")
    digest = shelf.digest("b")
    shelf.client.delete_adapter("b")
    wait_for(lambda: not shelf.adapters.has(digest) and not shelf.adapters.host.has(digest))
    assert shelf.server.metric("adapter_cache_evictions_total", tier="device", reason="deleted") == 1
    assert shelf.place("a@1") == "host"
    shelf.client.undelete_adapter("b")
    wait_for(lambda: shelf.place("b") == "device")


def test_pins_are_there_again_after_a_restart(shelf: Shelf, wait_for: Wait) -> None:
    """One that cannot be met is counted, and holds up neither the server nor the others."""
    shelf.client.pin_adapter("a@prod")
    shelf.client.pin_adapter("a@2", "host")
    shelf.client.pin_adapter("b", "host")
    version = shelf.server.app.store.resolve("b")
    shelf.close()
    for kind, digest in (("compiled", version.digest), ("blobs", version.blob_digest)):
        next(file for file in (shelf.folder / "store" / kind).rglob("*") if file.stem == digest).unlink()
    shelf.open()
    wait_for(lambda: shelf.place("a@1") == "device" and shelf.place("a@2") == "host")
    wait_for(lambda: shelf.server.metric("adapter_pins_unmet") == 1)
    shelf.clear()
    assert [shelf.place(reference) for reference in ("a@1", "a@2", "b")] == ["device", "host", "disk"]
    assert shelf.server.metric("adapters_pinned", tier="host") == 1


def test_pins_leave_room_for_requests(shelf: Shelf) -> None:
    for group in shelf.server.app.engine.groups.values():
        group.open(17, torch.device("cpu"))
    shelf.publish("large", 5, rank=9)
    with pytest.raises(ResourceExhausted, match=r"large@1 has total rank 9 in .*; expected at most 8") as caught:
        shelf.client.pin_adapter("large")
    assert caught.value.reason == "PINS_FULL" and caught.value.metadata == {"held": "0", "most": "8"}
    shelf.client.pin_adapter("a")
    shelf.client.pin_adapter("b")
    with pytest.raises(ResourceExhausted, match="other pins hold 8"):
        shelf.client.pin_adapter("a@1")
    assert shelf.client.generate("a dog", adapters={"a@1": 1.0}, steps=1, seed=1).images
    assert shelf.client.get_adapter("a").pins == {"a": "device"}


def test_a_preload_ends_with_its_call(shelf: Shelf, wait_for: Wait) -> None:
    """Its deadline passes while the file is read: the line is empty then, and the next call finds all in order."""
    opened = threading.Event()
    read = shelf.adapters.host.read
    shelf.adapters.host.read = lambda version: (opened.wait(20), read(version))[1]
    for ask, tier in ((shelf.client.preload_adapter, "device"), (shelf.client.pin_adapter, "device")):
        with pytest.raises(DeadlineExceeded):
            ask("b", tier, timeout=0.3)
    wait_for(lambda: not len(shelf.adapters._line) and not shelf.adapters.device._pinned)
    opened.set()
    assert shelf.client.preload_adapter("b").tier == "device"
    wait_for(lambda: all(resident.users == 0 for resident in shelf.adapters.device.residents.values()))
    assert shelf.client.get_adapter("b").pins == {}


def test_ticks_go_on_while_an_adapter_is_read_and_written(shelf: Shelf, wait_for: Wait) -> None:
    """By count: a picture makes twenty steps while another's adapter stands still, first in the reader, then in the
    writer of the pool."""
    reading, writing, opened = threading.Event(), threading.Event(), [threading.Event(), threading.Event()]
    host, group = shelf.adapters.host, shelf.server.app.engine.groups["unet.attention"]
    read, write = host.read, group.write

    def slow_read(version: Any) -> HostAdapter:
        reading.set()
        assert opened[0].wait(20)
        return read(version)

    def slow_write(*given: Any) -> None:
        writing.set()
        assert opened[1].wait(20)
        write(*given)

    host.read, group.write = slow_read, slow_write
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(shelf.client.generate, "a dog", adapters={"b": 1.0}, steps=1, seed=1)
        for stage, reached in enumerate((reading, writing)):
            assert reached.wait(20)
            assert shelf.client.generate("a cat", steps=20, seed=2, timeout=20).images
            assert not waiting.done()
            opened[stage].set()
        assert waiting.result(20).images


def test_what_was_pinned_beside_the_server_is_seen(shelf: Shelf, wait_for: Wait) -> None:
    shelf.server.app.store.pin_adapter("b", "device")
    shelf.client.update_adapter("a", description="anything")
    wait_for(lambda: shelf.place("b") == "device")
