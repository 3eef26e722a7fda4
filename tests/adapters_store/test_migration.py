"""A store that an earlier release has written is opened with nothing lost."""

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import adapter_files as af
import pytest
import torch
from old_catalogs import bring_back, empty_catalog

from loramux_store import InterpretOptions, Store, UploadSpec
from loramux_store.errors import NotFound
from loramux_store.report_json import options_to_json, report_to_json

PATHS = (
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "unet.mid_block.attentions.0.proj_in",
    "unet.conv_in",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    "text_encoder.text_model.encoder.layers.0.mlp.fc2",
)
SAID = {"labels": {"team": "art"}, "trigger_words": ("Zib",), "description": "Größe", "default_weight": 0.5}


def upload_all(store: Store, folder: Path) -> None:
    """a of two versions, an embedding b, and c, which is deleted."""
    for layout in af.TOYS:
        store.register_layout(layout)
    for seed, name in ((1, "a"), (2, "a"), (3, "c")):
        made = af.factors(af.TOY_SD1, PATHS, seed=seed)
        file = af.write(folder / f"{seed}.safetensors", af.peft_tensors(made))
        options = InterpretOptions(alpha=3.0 if seed == 2 else None)
        store.publish(file, UploadSpec(name=name, options=options, **(SAID if name == "a" else {})))
    vectors = {"emb_params": torch.randn(3, 24, generator=torch.Generator().manual_seed(0))}
    store.publish(af.write(folder / "b.safetensors", vectors), UploadSpec(name="b"))
    store.delete_adapter("c")


def write_first(store: Store, path: Path) -> None:
    """What the store holds, as the first schema had it."""
    empty_catalog(path, "0001")
    with sqlite3.connect(path) as old, sqlite3.connect(store._shelf.root / "catalog.sqlite3") as new:
        for table, columns in (
            ("layouts", "digest, name, body, create_us"),
            ("blobs", "digest, size_bytes, create_us"),
            (
                "adapters",
                "id, name, labels, default_weight, trigger_words, description, latest, create_us, update_us, delete_us",
            ),
        ):
            rows = new.execute(f"SELECT {columns} FROM {table}").fetchall()
            assert rows
            old.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
        ids = dict(new.execute("SELECT name, id FROM adapters").fetchall())
        for name, number in (("a", 1), ("a", 2), ("b", 1), ("c", 1)):
            old.execute(
                "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", version_row(store, ids, name, number)
            )
    old.close()
    new.close()


def version_row(store: Store, ids: dict[str, int], name: str, number: int) -> tuple[Any, ...]:
    if name == "c":
        store.undelete_adapter("c")
    v = store.resolve(f"{name}@{number}")
    if name == "c":
        store.delete_adapter("c")
    time = int(v.create_time.timestamp() * 1_000_000)
    report, options = report_to_json(v.report), options_to_json(v.options)
    return ids[name], number, v.digest, v.blob_digest, v.layout_digest, v.kind, options, report, time


def everything(path: Path) -> dict[str, list[Any]]:
    with sqlite3.connect(path) as catalog:
        tables = [row[0] for row in catalog.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {table: catalog.execute(f"SELECT * FROM {table}").fetchall() for table in tables}
    catalog.close()
    return found


def test_a_store_of_the_first_schema_is_as_if_made_today(tmp_path: Path) -> None:
    """The oracle is a store of today that was given the same files."""
    with Store.open(tmp_path / "new") as fresh:
        upload_all(fresh, tmp_path)
        shutil.copytree(tmp_path / "new" / "blobs", tmp_path / "old" / "blobs")
        write_first(fresh, tmp_path / "old" / "catalog.sqlite3")
        before = everything(tmp_path / "old" / "catalog.sqlite3")
        with Store.open(tmp_path / "old") as store:
            after = everything(tmp_path / "old" / "catalog.sqlite3")
            assert store.list_events(10).items == ()
            compare(store, fresh)
    for table in ("layouts", "blobs"):
        assert after[table] == before[table]
    assert [row[:10] for row in after["adapters"]] == before["adapters"]
    moved = [(*row[:6], row[10]) for row in after["versions"]], [(*row[:6], row[8]) for row in before["versions"]]
    assert moved[0] == moved[1] and len(moved[0]) == 4
    assert [row[2:] for row in after["version_details"]] == [row[6:8] for row in before["versions"]]


def compare(store: Store, fresh: Store) -> None:
    for name in ("a", "b"):
        migrated, made = store.get_adapter(name), fresh.get_adapter(name)
        for field in ("labels", "default_weight", "trigger_words", "description", "create_time", "aliases"):
            assert getattr(migrated, field) == getattr(made, field), field
    for ref in ("a", "a@1", "b"):
        migrated, made = store.resolve(ref), fresh.resolve(ref)
        assert migrated == made
        assert migrated.device_bytes > 0
    assert store.resolve("a").rank > 0 and store.resolve("b").embedding is not None
    with pytest.raises(NotFound, match="deleted"):
        store.resolve("c")
    store.undelete_adapter("c")
    assert store.resolve("c").digest == store.resolve("c@1").digest
    assert [record.name for record in store.list_adapters(10, filter="größe zib").items] == ["a"]
    assert af.compiled_delta(store.compiled(store.resolve("a")), af.TOY_SD1)[PATHS[0]].norm() > 0


def test_a_migration_that_fails_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    with Store.open(tmp_path / "new") as fresh:
        upload_all(fresh, tmp_path)
        write_first(fresh, tmp_path / "catalog.sqlite3")
    with sqlite3.connect(tmp_path / "catalog.sqlite3") as catalog:
        catalog.execute("UPDATE versions SET report = '{' WHERE number = 2")
    catalog.close()
    before = everything(tmp_path / "catalog.sqlite3")
    with pytest.raises(json.JSONDecodeError):
        Store.open(tmp_path)
    assert everything(tmp_path / "catalog.sqlite3") == before


def test_a_migrated_catalog_has_the_schema_of_a_new_one(tmp_path: Path) -> None:
    empty_catalog(tmp_path / "catalog.sqlite3", "0001")
    schemas = list[set[str]]()
    for folder in (tmp_path, tmp_path / "new"):
        Store.open(folder).close()
        with sqlite3.connect(folder / "catalog.sqlite3") as catalog:
            rows = catalog.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
            strict = catalog.execute(
                "SELECT name FROM pragma_table_list WHERE schema = 'main' AND NOT strict"
            ).fetchall()
            assert {row[0] for row in strict} <= {"alembic_version", "sqlite_schema"}
            assert catalog.execute("PRAGMA foreign_key_check").fetchall() == []
        catalog.close()
        schemas.append({row[0] for row in rows})
    assert schemas[0] == schemas[1]


def test_a_store_of_the_second_schema_keeps_everything_and_takes_pins(tmp_path: Path) -> None:
    """Written today and brought back to the second schema, which had no pins and nothing bundled."""
    with Store.open(tmp_path) as store:
        upload_all(store, tmp_path)
        told = [store.get_adapter(name) for name in "ab"], store.resolve("a@1"), store.list_events(10).items
    bring_back(tmp_path / "catalog.sqlite3", "0002")
    before = everything(tmp_path / "catalog.sqlite3")
    with Store.open(tmp_path) as store:
        assert ([store.get_adapter(name) for name in "ab"], store.resolve("a@1"), store.list_events(10).items) == told
        after = everything(tmp_path / "catalog.sqlite3")
        assert after.pop("pins") == [] and after.pop("alembic_version") != before.pop("alembic_version")
        assert [row[:-1] for row in after.pop("versions")] == before.pop("versions")
        assert after == before
        assert store.pin_adapter("a@1", "host").pins == {"a@1": "host"}
        assert store.fsck(full=True) == ()
