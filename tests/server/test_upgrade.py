"""An upgrade from the previous store schema under load loses nothing.

A store that is as the previous release left it is served by a new server, while clients ask all the time.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aftermath import Before, warm
from crowd import Heard, alike, crowd, drawn
from old_catalogs import bring_back, revisions
from processes import Serving, start
from small_adapters import small_adapter

from loramux_client.errors import NotFound
from loramux_client.upload_source import CHUNK_BYTES
from loramux_store import Store

HALF_DONE = small_adapter(3, "half done", pad=4 * CHUNK_BYTES)
REFS = ["ink", "a", "a@1", "a@prod", "b", ""]
FIELDS = ("labels", "default_weight", "trigger_words", "aliases", "pins", "create_time", "latest_version", "etag")
BUNDLED = "0004"
"""The revision since which options tell of bundled embeddings."""


async def test_an_upgrade_under_load_loses_nothing(tmp_path: Path) -> None:
    earlier = await start(tmp_path)
    told, expected = await filled(earlier, tmp_path), await pictures(earlier)
    assert await earlier.stop() == 0
    brought_back(tmp_path)
    async with crowd(earlier.target, REFS, count=3) as heard:
        while len(heard.refusals) < 3:  # from before there is a server
            await asyncio.sleep(0.02)
        serving = await start(tmp_path, port=earlier.port)
        uploaded = await serving.client.upload(HALF_DONE, "half-done")
        await all_drawn(heard)
    assert all(refusal.reason == "" for refusal in heard.refusals), "refused by nobody but for want of a server"
    assert all(alike(found, expected[ref]) for ref, found in heard.pictures)
    assert uploaded.created
    assert serving.metrics()["loramux_upload_bytes_total"] <= len(HALF_DONE) - CHUNK_BYTES, "only the rest came again"
    assert await everything(serving) == told
    assert serving.metrics()["loramux_adapter_pins_unmet"] == 0
    await drawn(serving.client, "half-done")
    await warm(serving.client, "ink")
    before = Before(serving)
    async with crowd(serving.target, REFS, count=3) as heard:
        await all_drawn(heard)
    await before.is_again()
    assert await serving.stop() == 0
    with Store.open(tmp_path) as store:
        assert all(found.mended for found in store.fsck(full=True, repair=True)), "compiled files that nobody used"
        assert store.fsck(full=True) == ()


async def all_drawn(heard: Heard) -> None:
    async with asyncio.timeout(60):
        while {ref for ref, _ in heard.pictures} != set(REFS):
            await asyncio.sleep(0.02)


async def filled(serving: Serving, folder: Path) -> dict[str, Any]:
    """Two versions with an alias and a pin, one adapter more, one that is deleted, an upload that has come half way."""
    client = serving.client
    for kind, name in ((0, "a"), (1, "a"), (2, "b"), (3, "gone")):
        await client.upload(small_adapter(kind, name), name, labels={"team": "art"}, default_weight=0.5)
    await client.update_adapter("a", aliases={"prod": 1})
    await client.pin_adapter("a@prod", "host")
    await client.delete_adapter("gone")

    def stop(so_far: int, total: int) -> None:
        if so_far > total // 2:
            raise KeyError("enough")

    with pytest.raises(KeyError):
        await client.upload(HALF_DONE, "half-done", progress=stop)
    async with asyncio.timeout(30):
        while serving.held()["uploads_in_progress"]:
            await asyncio.sleep(0.02)
    return await everything(serving)


async def everything(serving: Serving) -> dict[str, Any]:
    """What is told of all but the upload and of the tiers that they happen to be in."""
    client, found = serving.client, dict[str, Any]()
    for name in ("ink", "a", "b"):
        adapter = await client.get_adapter(name)
        found[name] = {field: getattr(adapter, field) for field in FIELDS}
        found[name]["versions"] = [version async for version in client.list_versions(name)]
    found["events"] = [event async for event in client.list_audit_events() if event.adapter != "half-done"]
    with pytest.raises(NotFound, match="deleted"):
        await client.get_adapter("gone")
    return found


async def pictures(serving: Serving) -> dict[str, np.ndarray]:
    found = {ref: await drawn(serving.client, ref) for ref in REFS}
    assert alike(found["a@1"], found["a@prod"])
    others = [ref for ref in REFS if ref != "a@1"]
    assert not any(alike(found[one], found[other]) for one in others for other in others if one != other)
    return found


def brought_back(store: Path) -> None:
    """As the previous release left it: catalog, what was announced of the upload, compiled files of another form."""
    previous = revisions()[1]
    bring_back(store / "catalog.sqlite3", previous)
    (announced,) = (store / "uploads").glob("*.json")
    said = json.loads(announced.read_text())
    if previous < BUNDLED:
        assert said["options"].pop("bundled")
    announced.write_text(json.dumps(said, sort_keys=True))
    (part,) = (store / "uploads").glob("*.part")
    assert CHUNK_BYTES <= part.stat().st_size < len(HALF_DONE)
    compiled = list((store / "compiled").rglob("*.safetensors"))
    for path in compiled:
        path.chmod(0o644)
        path.write_bytes(path.read_bytes().replace(b'"format":"6"', b'"format":"5"'))
    assert len(compiled) >= 5
