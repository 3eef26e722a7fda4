"""What the catalog knows of adapters: aliases, what owners say, etags, listings, who did what."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import adapter_files as af
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shelved import new_version, shelve

from loramux_store import AdapterChange, AdapterRecord, Store, UploadSpec
from loramux_store.catalog import Catalog
from loramux_store.errors import Changed, InvalidArgument, NotFound
from loramux_store.file_notes import notes_of
from loramux_store.listings import adapter_page
from loramux_store.names import Ref
from loramux_store.record import Embedding, FileNotes

PATH = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    made = Catalog(tmp_path / "catalog.sqlite3")
    yield made
    made.close()


@pytest.fixture
def owned(store: Store, tmp_path: Path) -> Store:
    """A store with x, of three versions."""
    for seed in (1, 2, 3):
        publish(store, tmp_path, "x", seed)
    return store


def publish(store: Store, folder: Path, name: str, seed: int, metadata: Any = None, **said: Any) -> None:
    tensors = af.peft_tensors(af.factors(af.TOY_SD1, [PATH], seed=seed))
    store.publish(af.write(folder / f"{seed}.safetensors", tensors, metadata), UploadSpec(name=name, **said))


# -- aliases --------------------------------------------------------------------------------------


def test_an_alias_means_its_version_until_it_is_pointed_elsewhere(owned: Store) -> None:
    owned.update_adapter("x", AdapterChange(aliases={"prod": 1, "next": 3}))
    assert [owned.resolve(f"x@{word}").number for word in ("prod", "next")] == [1, 3]
    changed = owned.update_adapter("x", AdapterChange(aliases={"prod": 2}))
    assert changed.aliases == owned.get_adapter("x").aliases == {"prod": 2}
    assert owned.resolve("x@prod").digest == owned.resolve("x@2").digest
    with pytest.raises(NotFound, match="no alias 'next'; it has prod"):
        owned.resolve("x@next")


@pytest.mark.parametrize("aliases", [{"prod": 4}, {"prod": 0}, {"3": 1}, {"Prod": 1}, {"": 1}, {"a\n": 1}])
def test_an_alias_that_means_nothing_is_refused_and_changes_nothing(owned: Store, aliases: dict[str, int]) -> None:
    before = owned.update_adapter("x", AdapterChange(aliases={"prod": 1}))
    with pytest.raises(InvalidArgument, match="aliases"):
        owned.update_adapter("x", AdapterChange(aliases=aliases, description="new"))
    assert owned.get_adapter("x") == before


def test_aliases_outlive_deletion_uploads_and_a_restart(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path, "x", 1)
    store.update_adapter("x", AdapterChange(aliases={"prod": 1}))
    store.delete_adapter("x")
    with pytest.raises(NotFound, match="deleted"):
        store.resolve("x@prod")
    publish(store, tmp_path, "x", 2)
    store.close()
    with Store.open(tmp_path / "store") as again:
        assert again.resolve("x@prod").number == 1 and again.resolve("x").number == 2


# -- updates, etags -------------------------------------------------------------------------------

SAID = {
    "labels": {"team": "art", "of": ""},
    "default_weight": 0.25,
    "trigger_words": ("zib", "über"),
    "description": "new words",
    "licence": "CC0",
    "base_model": "v1-5",
}


@pytest.mark.parametrize("field", SAID)
def test_an_update_changes_its_field_only(owned: Store, field: str) -> None:
    before = owned.get_adapter("x")
    after = owned.update_adapter("x", AdapterChange(**{field: SAID[field]}))
    assert getattr(after, field) == SAID[field] != getattr(before, field)
    source = "owner" if field == "trigger_words" else before.trigger_source
    since = {"etag": after.etag, "update_time": after.update_time, "trigger_source": source}
    assert replace(before, **{field: SAID[field]}, **since) == after == owned.get_adapter("x")
    assert after.etag != before.etag and after.update_time > before.update_time


def test_what_is_emptied_is_the_files_again(store: Store, tmp_path: Path) -> None:
    publish(
        store, tmp_path, "x", 1, {"modelspec.trigger_phrase": "zib", "modelspec.license": "MIT"}, default_weight=0.5
    )
    found = store.get_adapter("x")
    assert (found.trigger_words, found.trigger_source, found.licence) == (("zib",), "modelspec.trigger_phrase", "MIT")
    said = store.update_adapter("x", AdapterChange(trigger_words=("mine",), licence="CC0"))
    assert (said.trigger_words, said.trigger_source, said.licence) == (("mine",), "owner", "CC0")
    emptied = store.update_adapter("x", AdapterChange(trigger_words=(), licence="", clear_default_weight=True))
    assert emptied.default_weight is None
    assert (emptied.trigger_words, emptied.licence) == (("zib",), "MIT")


def test_an_etag_lets_only_the_first_of_two_change(owned: Store) -> None:
    seen = owned.get_adapter("x").etag
    owned.update_adapter("x", AdapterChange(description="first"), etag=seen)
    for late in (
        lambda: owned.update_adapter("x", AdapterChange(description="second"), etag=seen),
        lambda: owned.delete_adapter("x", etag=seen),
    ):
        with pytest.raises(Changed) as caught:
            late()
        assert caught.value.current == owned.get_adapter("x").etag
    assert owned.get_adapter("x").description == "first"


def test_racing_changes_with_etags_are_never_lost(owned: Store) -> None:
    def count() -> None:
        for _ in range(5):
            while True:
                seen = owned.get_adapter("x")
                at = int(seen.description or 0) + 1
                try:
                    owned.update_adapter("x", AdapterChange(description=str(at)), etag=seen.etag)
                    break
                except Changed:
                    continue

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert owned.get_adapter("x").description == "15"


def test_every_change_has_an_etag_of_its_own(owned: Store, tmp_path: Path) -> None:
    seen = [owned.get_adapter("x").etag]
    for act in (
        lambda: owned.update_adapter("x", AdapterChange(aliases={"a": 1})),
        lambda: publish(owned, tmp_path, "x", 9),
        lambda: owned.delete_adapter("x"),
        lambda: owned.undelete_adapter("x"),
    ):
        act()
        seen.append(next(iter(owned.list_adapters(1, deleted=True).items)).etag)
    assert len(set(seen)) == len(seen)
    unchanged = owned.update_adapter("x", AdapterChange(aliases={"a": 1}))
    assert unchanged.etag == seen[-1], "what changes nothing is no change"


def test_undeleting_shows_everything_again(owned: Store) -> None:
    before = owned.update_adapter("x", AdapterChange(**SAID, aliases={"prod": 2}))
    owned.delete_adapter("x")
    after = owned.undelete_adapter("x")
    assert replace(after, etag=before.etag, update_time=before.update_time) == before
    assert owned.undelete_adapter("x") == after, "once is enough"
    with pytest.raises(NotFound):
        owned.undelete_adapter("y")


# -- the audit log --------------------------------------------------------------------------------


def test_every_change_is_told_with_who_and_what(store: Store, tmp_path: Path) -> None:
    file = af.write(tmp_path / "a", af.peft_tensors(af.factors(af.TOY_SD1, [PATH], seed=1)))
    with store.begin_upload(UploadSpec(name="x"), who="ann") as upload:
        upload.write(file.read_bytes())
        upload.commit()
    store.publish(file, UploadSpec(name="x"))  # changes nothing
    store.update_adapter("x", AdapterChange(default_weight=0.5, aliases={"prod": 1}), who="bob")
    store.delete_adapter("x", who="cy")
    store.undelete_adapter("x", who="dee")
    store.delete_adapter("x", who="cy")
    store.publish(file, UploadSpec(name="x", description="again"))
    found = store.list_events(50).items[::-1]
    assert [(e.who, e.action, e.adapter, e.version, e.detail) for e in found] == [
        ("ann", "upload", "x", 1, ""),
        ("bob", "update", "x", None, "default_weight: none -> 0.5; alias prod: none -> 1"),
        ("cy", "delete", "x", None, ""),
        ("dee", "undelete", "x", None, ""),
        ("cy", "delete", "x", None, ""),
        ("local", "upload", "x", 1, "undeleted; description:  -> again"),
    ]
    assert sorted(e.time for e in found) == [e.time for e in found]


def test_what_is_refused_is_not_told(owned: Store) -> None:
    before = owned.list_events(50).items
    for act in (
        lambda: owned.update_adapter("x", AdapterChange(description="d", aliases={"a": 99})),
        lambda: owned.delete_adapter("x", etag="old"),
        lambda: owned.undelete_adapter("y"),
    ):
        with pytest.raises((InvalidArgument, Changed, NotFound)):
            act()
    assert owned.list_events(50).items == before


def test_the_log_of_one_adapter_comes_in_pages(catalog: Catalog, tmp_path: Path) -> None:
    catalog.close()
    with Store.open(tmp_path) as store:
        for at in range(4):
            for name in ("x", "y"):
                shelve(store._catalog, name, new_version((name, at), af.TOY_SD1))
        whole, pages, token = store.list_events(50, adapter="x").items, list[Any](), ""
        assert [event.version for event in whole] == [4, 3, 2, 1]
        while True:
            page = store.list_events(3, token, "x")
            pages += page.items
            token = page.next_page_token
            if not token:
                break
        assert tuple(pages) == whole
        with pytest.raises(InvalidArgument, match="page_token"):
            store.list_events(3, store.list_events(3, adapter="x").next_page_token, "y")


# -- listings -------------------------------------------------------------------------------------


def listed(catalog: Catalog, filter: str = "", order_by: str = "", deleted: bool = False, size: int = 100) -> list[str]:
    names, token = list[str](), ""
    while True:
        page = adapter_page(catalog, size, token, filter, order_by, deleted)
        names += [record.name for record in page.items]
        token = page.next_page_token
        if not token:
            return names


@pytest.fixture
def filled(catalog: Catalog) -> Catalog:
    """a to f, with something to tell each by; f is deleted."""
    shelve(catalog, "a", new_version(1, af.TOY_SD1), labels={"team": "art", "it's": "x=y z"})
    shelve(catalog, "b", new_version(2, af.TOY_SD2), labels={"team": "lab"}, description="ein Bär im Öl")
    shelve(catalog, "c", new_version(3, af.TOY_SD1, embedding=True), trigger_words=("Zib%", "q_r"))
    shelve(catalog, "d", new_version(4, af.TOY_SD1, notes=FileNotes(("ROBOT",), "modelspec.trigger_phrase")))
    shelve(catalog, "e", new_version(5, af.TOY_SDXL), description="say \\ and 'it'")
    shelve(catalog, "f", new_version(6, af.TOY_SD1))
    catalog.delete("f", "", "w")
    return catalog


@pytest.mark.parametrize(
    ("filter", "names"),
    [
        ("", "abcde"),
        ("layout=toy_sd1", "acd"),
        (f"layout={af.TOY_SD2.digest}", "b"),
        ("layout=sd", ""),
        ("kind=embedding", "c"),
        ("kind=lora layout=toy_sd1", "ad"),
        ("layout=toy_sd1 layout=toy_sd2", ""),
        ("labels.team", "ab"),
        ("labels.team=art", "a"),
        ("labels.team=", ""),
        ('"labels.it\'s=x=y z"', "a"),
        ("labels.none", ""),
        ("bär ÖL", "b"),
        ('"im öl"', "b"),
        ('"öl im"', ""),
        ("zib%", "c"),
        ("z%b", ""),
        ("q_r", "c"),
        ("q?r", ""),
        ("robot", "d"),
        ("\\", "e"),
        ("'it'", "e"),
        ("#", ""),
    ],
)
def test_a_filter_selects_what_it_says(filled: Catalog, filter: str, names: str) -> None:
    assert listed(filled, filter) == list(names)
    assert listed(filled, filter, "name desc", size=1) == list(names)[::-1]


@pytest.mark.parametrize("filter", ["kind=x", "size=3", "=", '"open', "x" * 501])
def test_a_filter_that_means_nothing_is_refused(catalog: Catalog, filter: str) -> None:
    with pytest.raises(InvalidArgument, match="filter"):
        listed(catalog, filter)


def test_deleted_adapters_are_listed_where_asked_for(filled: Catalog) -> None:
    assert listed(filled, deleted=True) == list("abcdef")
    assert listed(filled, "layout=toy_sd1", "update_time desc", True)[0] == "f"


def test_filters_see_what_owners_say_now(filled: Catalog) -> None:
    filled.change("a", AdapterChange(description="Robotic", trigger_words=("hop",)), "", "w")
    filled.change("d", AdapterChange(trigger_words=("hop",)), "", "w")
    assert listed(filled, "robot") == ["a"] and listed(filled, "hop") == ["a", "d"]
    shelve(filled, "b", new_version(7, af.TOY_SD1, notes=FileNotes(("hop",), "ss_dataset_dirs")))
    assert listed(filled, "hop") == ["a", "b", "d"] and listed(filled, "layout=toy_sd2") == []


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(1, 6),
    order=st.sampled_from(["name", "create_time", "update_time"]),
    down=st.booleans(),
    times=st.lists(st.integers(0, 2), min_size=5, max_size=5),
)
def test_pages_in_any_order_show_everything_once(
    filled: Catalog, size: int, order: str, down: bool, times: list[int]
) -> None:
    """Also where many have the same time."""
    with filled._writing() as connection:
        for name, time in zip("abcde", times, strict=True):
            connection.exec_driver_sql(
                "UPDATE adapters SET create_us = ?, update_us = 9 - ? WHERE name = ?", (time, time, name)
            )
    keys = {
        "name": lambda name: name,
        "create_time": lambda name: (times["abcde".index(name)], name),
        "update_time": lambda name: (-times["abcde".index(name)], name),
    }
    expected = sorted("abcde", key=keys[order], reverse=down)
    assert listed(filled, order_by=f"{order} desc" if down else order, size=size) == expected


def test_a_token_belongs_to_its_filter_and_order(filled: Catalog) -> None:
    token = adapter_page(filled, 1, "", "layout=toy_sd1", "", False).next_page_token
    for other in (("", "", False), ("layout=toy_sd1", "create_time", False), ("layout=toy_sd1", "", True)):
        with pytest.raises(InvalidArgument, match="page_token"):
            adapter_page(filled, 1, token, *other)


@pytest.mark.parametrize("order_by", ["size", "name up", "name, create_time", "desc"])
def test_an_order_there_is_none_of_is_refused(catalog: Catalog, order_by: str) -> None:
    with pytest.raises(InvalidArgument, match="order_by"):
        listed(catalog, order_by=order_by)


@pytest.mark.parametrize("order_by", ["name", "create_time", "update_time desc"])
@pytest.mark.parametrize("filter", ["", "kind=lora", "layout=sd1", "labels.team=art kind=lora layout=sd1 word"])
@pytest.mark.parametrize("page", [0, 1])
def test_pages_walk_an_index_and_leave_reports_alone(filled: Catalog, order_by: str, filter: str, page: int) -> None:
    """Else a page of many adapters sorts them all, or reads megabytes."""
    from loramux_store import catalog_queries
    from loramux_store.selection import read_selection

    after = (5, "a") if page else None
    query = catalog_queries.adapter_page(read_selection(filter, order_by), 50, after)
    with filled._reading() as connection:
        text = str(query.compile(connection, compile_kwargs={"literal_binds": True}))
        plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]
    assert any("adapters" in step and "USING INDEX" in step for step in plan), plan
    assert not any("TEMP B-TREE" in step or step.startswith(("SCAN versions", "SCAN blobs")) for step in plan), plan
    assert "version_details" not in text


# -- what files say -------------------------------------------------------------------------------

DIRS = json.dumps({"10_sks dog": {}, "reg": {}, "2_cat": {}})
TAGS = json.dumps({"a": {"dog": 3, "cat": 2}, "b": {"cat": 2}, "c": 7})


@pytest.mark.parametrize(
    ("metadata", "words", "source"),
    [
        ({}, (), ""),
        ({"ss_tag_frequency": TAGS}, ("cat",), "ss_tag_frequency"),
        ({"ss_tag_frequency": json.dumps({"a": {"dog": 3, "cat": 3, "key": 1}})}, (), ""),
        ({"ss_tag_frequency": TAGS, "ss_dataset_dirs": DIRS}, ("sks dog", "cat"), "ss_dataset_dirs"),
        ({"ss_dataset_dirs": DIRS, "modelspec.trigger_phrase": "a zib "}, ("a zib",), "modelspec.trigger_phrase"),
        ({"ss_dataset_dirs": DIRS, "modelspec.trigger_phrase": " \n"}, ("sks dog", "cat"), "ss_dataset_dirs"),
        ({"ss_dataset_dirs": "[" * 100000, "ss_tag_frequency": '{"a": {"b": "7", "c": -1}}'}, (), ""),
        ({"modelspec.trigger_phrase": "a\x1b[31mb\u202e" + "c" * 999}, ("a [31mb\u202e" + "c" * 248,), None),
    ],
)
def test_trigger_words_come_from_the_first_place_that_has_any(
    metadata: dict[str, str], words: tuple[str, ...], source: str | None
) -> None:
    found = notes_of(metadata, ())
    assert found.trigger_words == words
    assert source is None or found.source == source


def test_an_embeddings_trigger_is_its_word_where_nothing_else_is_said() -> None:
    embeddings = [Embedding(trigger, 1, {"text_encoder": 24}) for trigger in ("<cat>", "<dog>")]
    assert notes_of({}, embeddings[:1]) == FileNotes(("<cat>",), "embedding")
    assert notes_of({}, embeddings) == FileNotes(("<cat>", "<dog>"), "embedding")
    assert notes_of({"ss_dataset_dirs": DIRS}, embeddings).trigger_words == ("sks dog", "cat")


def test_licence_and_base_model_are_told_without_the_trainers_folders() -> None:
    metadata = {"modelspec.license": "MIT\n", "ss_sd_model_name": "C:\\me\\models/v1-5.safetensors"}
    assert notes_of(metadata, ()) == FileNotes((), "", "MIT", "v1-5.safetensors")


def test_the_owners_words_count_before_the_files(owned: Store, tmp_path: Path) -> None:
    publish(owned, tmp_path, "y", 5, {"modelspec.trigger_phrase": "zib"}, trigger_words=("mine",), licence="CC0")
    record: AdapterRecord = owned.get_adapter("y")
    assert (record.trigger_words, record.trigger_source, record.licence) == (("mine",), "owner", "CC0")
    assert record.latest_version.notes.trigger_words == ("zib",)


def test_a_version_is_found_by_number_alias_and_neither(catalog: Catalog) -> None:
    for seed in (1, 2):
        shelve(catalog, "x", new_version(seed, af.TOY_SD1))
    catalog.change("x", AdapterChange(aliases={"old": 1}), "", "w")
    assert [catalog.version(ref).number for ref in (Ref("x"), Ref("x", 1), Ref("x", None, "old"))] == [2, 1, 1]
