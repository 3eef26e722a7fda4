"""What owners say of adapters, over the wire: masks, etags, aliases, who did what. No base, no engine."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from google.protobuf.field_mask_pb2 import FieldMask
from safetensors.torch import save_file
from test_shelf_service import Door, adapter_file, refusal

from loramux.v1 import adapter_pb2
from loramux.v1 import adapter_service_pb2 as pb
from loramux_client import AsyncClient
from loramux_client.errors import Aborted, InvalidArgument, NotFound
from loramux_server.callers import caller_of
from loramux_server.engine.load_base import load_base
from loramux_server.engine.lora_layers import wrap
from loramux_store import Layout, MatchedModule, ModuleSpec, UploadSpec
from loramux_store.footprint import device_bytes, layer_group


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    made = Door(tmp_path / "store")
    await made.open()
    yield made
    await made.shut()


@pytest.fixture
async def client(door: Door) -> AsyncIterator[AsyncClient]:
    """Its user is Jörg; x has two versions."""
    async with AsyncClient(f"127.0.0.1:{door.port}", who="Jörg") as made:
        for seed in (1, 2):
            await made.upload(adapter_file(seed), "x")
        yield made


async def update(door: Door, paths: list[str] | None = None, **fields: Any) -> adapter_pb2.Adapter:
    mask = None if paths is None else FieldMask(paths=paths)
    return await door.stub.UpdateAdapter(
        pb.UpdateAdapterRequest(adapter=adapter_pb2.Adapter(name="x", **fields), update_mask=mask)
    )


FULL: dict[str, Any] = {
    "labels": {"team": "art"},
    "default_weight": 0.5,
    "trigger_words": ["zib"],
    "description": "d",
    "licence": "CC0",
    "base_model": "v1-5",
    "aliases": {"prod": 1},
}


def said(adapter: adapter_pb2.Adapter) -> dict[str, Any]:
    """What of FULL is not empty."""
    values = {name: getattr(adapter, name) for name in FULL if name != "default_weight"}
    found: dict[str, Any] = {name: type(FULL[name])(value) for name, value in values.items() if value}
    return found | ({"default_weight": adapter.default_weight} if adapter.HasField("default_weight") else {})


async def test_without_a_mask_what_is_given_changes(door: Door, client: AsyncClient) -> None:
    assert said(await update(door, **FULL)) == FULL
    assert said(await update(door, description="other")) == {**FULL, "description": "other"}


async def test_a_mask_names_what_changes_and_empties(door: Door, client: AsyncClient) -> None:
    for field in FULL:
        assert said(await update(door, ["*"])) == {}
        assert said(await update(door, [field], **FULL)) == {field: FULL[field]}
        assert said(await update(door, ["*"], **FULL)) == FULL
        assert said(await update(door, [field])) == {name: value for name, value in FULL.items() if name != field}


async def test_a_mask_of_what_cannot_change_is_refused(door: Door, client: AsyncClient) -> None:
    for path in ("name", "latest_version", "aliases.prod", "nonsense"):
        code, info, details = await refusal(update(door, ["description", path], description="new"))
        assert (code, info.reason, details) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", ["BadRequest"])
    assert (await client.get_adapter("x")).description == ""


async def test_an_old_etag_is_told_with_the_new_one(door: Door, client: AsyncClient) -> None:
    seen = await client.get_adapter("x")
    changed = await client.update_adapter("x", description="d", etag=seen.etag)
    for call in (
        client.update_adapter("x", description="e", etag=seen.etag),
        client.delete_adapter("x", etag=seen.etag),
        client.undelete_adapter("x", etag=seen.etag),
    ):
        with pytest.raises(Aborted) as caught:
            await call
        assert caught.value.reason == "ETAG_MISMATCH"
        assert caught.value.metadata == {"adapter": "x", "etag": changed.etag}
    assert await client.get_adapter("x") == changed


async def test_an_alias_is_taken_wherever_a_version_is(door: Door, client: AsyncClient, tmp_path: Path) -> None:
    await client.update_adapter("x", aliases={"prod": 1})
    found = await client.get_adapter("x@prod")
    assert found.asked_version is not None and found.asked_version.number == 1
    assert found.latest_version.number == 2 and (await client.get_adapter("x")).asked_version is None
    assert (await client.download("x@prod", tmp_path / "x")).number == 1
    assert (tmp_path / "x").read_bytes() == adapter_file(1)
    for missing in ("x@next", "x@3"):
        with pytest.raises(NotFound):
            await client.get_adapter(missing)


async def test_deleted_adapters_come_back_as_they_were(door: Door, client: AsyncClient) -> None:
    before = await client.update_adapter("x", **FULL)
    deleted = await client.delete_adapter("x")
    assert deleted.delete_time is not None
    assert [one.name async for one in client.list_adapters()] == []
    assert [one.delete_time async for one in client.list_adapters(deleted=True)] == [deleted.delete_time]
    after = await client.undelete_adapter("x")
    assert (after.labels, after.aliases, after.delete_time) == (before.labels, before.aliases, None)
    samples = door.metrics.registry.get_sample_value
    counted = [samples("loramux_adapter_changes_total", {"action": a}) for a in ("update", "delete", "undelete")]
    assert counted == [1.0, 1.0, 1.0]


async def test_lists_are_filtered_and_ordered(door: Door, client: AsyncClient) -> None:
    await client.upload(adapter_file(3), "y", labels={"team": "art"}, description="Blue robots")
    assert [one.name async for one in client.list_adapters(order_by="create_time desc")] == ["y", "x"]
    assert [one.name async for one in client.list_adapters(filter="labels.team=art ROBOT")] == ["y"]
    for asked in ({"filter": "size=3"}, {"order_by": "size"}):
        with pytest.raises(InvalidArgument, match=next(iter(asked))):
            _ = [one async for one in client.list_adapters(**asked)]


async def test_the_log_says_who_did_what(door: Door, client: AsyncClient) -> None:
    await client.update_adapter("x", aliases={"prod": 2})
    async with AsyncClient(client.target) as nobody:
        await nobody.delete_adapter("x")
    found = [event async for event in client.list_audit_events("x")]
    assert [(e.who, e.action, e.version, e.detail) for e in found] == [
        ("127.0.0.1", "delete", None, ""),
        ("Jörg from 127.0.0.1", "update", None, "alias prod: none -> 2"),
        ("Jörg from 127.0.0.1", "upload", 2, ""),
        ("Jörg from 127.0.0.1", "upload", 1, ""),
    ]
    assert [event async for event in client.list_audit_events("y")] == []


@pytest.mark.parametrize(
    ("peer", "said", "told"),
    [
        ("ipv4:10.0.0.7:5123", None, "10.0.0.7"),
        ("ipv6:%5B::1%5D:5123", None, "[::1]"),
        ("unix:/run/x.sock", "ann", "ann from unix:/run/x.sock"),
        ("ipv4:10.0.0.7:1", "a%0Ab\x1b" + "c" * 200, "a b " + "c" * 124 + " from 10.0.0.7"),
        ("ipv4:10.0.0.7:1", " ", "10.0.0.7"),
    ],
)
def test_a_caller_is_told_by_name_and_address(peer: str, said: str | None, told: str) -> None:
    metadata = () if said is None else (("user-agent", "x"), ("loramux-who", said))
    assert caller_of(metadata, peer).who == told


def test_who_is_verified_goes_before_who_is_said() -> None:
    assert caller_of([("loramux-who", "ann")], "ipv4:10.0.0.7:1", "gallery").who == "gallery (ann) from 10.0.0.7"
    assert caller_of([], "ipv4:10.0.0.7:1", "gallery").who == "gallery from 10.0.0.7"


def test_device_bytes_are_those_of_the_engines_pools(tiny_base: Path) -> None:
    """Which layers share row numbers is a rule of the engine; the store counts by the same."""
    groups = wrap(load_base(tiny_base, "tiny", torch.device("cpu")).models)
    assert set(groups) == {
        "text_encoder",
        *(f"unet.{part}" for part in ("attention", "feed_forward", "convolution", "rest")),
    }
    kinds = {2: "linear", 4: "conv2d"}
    specs = {
        path: ModuleSpec(kinds[layer.weight.ndim], tuple(layer.weight.shape))
        for group in groups.values()
        for path, layer in group.layers.items()
    }
    layout = Layout("tiny", specs)
    for name, group in groups.items():
        assert {layer_group(path, specs[path]) for path in group.layers} == {name}
    firsts = [next(iter(group.layers)) for group in groups.values()]
    modules = [MatchedModule(path, specs[path].kind, 3, 3.0, 1.0) for path in firsts]
    for module, group in zip(modules, groups.values(), strict=True):
        assert device_bytes([module], layout) == 3 * group.row_bytes / 2, "16 bits, not 32"
    assert device_bytes(modules, layout) == sum(3 * group.row_bytes / 2 for group in groups.values())
    module, path = modules[0], firsts[0]
    beside = replace(module, axis="output", side_values=7)
    assert device_bytes([beside], layout) == device_bytes([module], layout) + 14 + 4 * specs[path].shape[0]


def test_a_file_that_fits_the_base_and_another_ones_layout_is_for_the_base(server: Any, tmp_path: Path) -> None:
    base = server.app.engine.layout
    out, _, height, width = base.modules["unet.conv_in"].shape
    other = {**base.modules, "unet.conv_in": ModuleSpec("conv2d", (out, 9, height, width))}
    server.app.store.register_layout(Layout("other", other))
    path = next(path for path, spec in base.modules.items() if path.startswith("unet.") and spec.kind == "linear")
    out, source = base.modules[path].shape
    save_file(
        {f"{path}.lora_A.weight": torch.ones(2, source), f"{path}.lora_B.weight": torch.ones(out, 2)},
        tmp_path / "a.safetensors",
    )
    published = server.app.store.publish(tmp_path / "a.safetensors", UploadSpec("a"))
    assert published.report.layout_digest == base.digest
