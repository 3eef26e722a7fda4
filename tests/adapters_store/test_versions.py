"""Names, versions, digests, pages: what the catalog promises."""

import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import adapter_files as af
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loramux_store import InterpretOptions, Store, UploadSpec
from loramux_store.compiled_file import FORMAT
from loramux_store.errors import DataLoss, InvalidArgument, NotFound, SchemaTooNew
from loramux_store.report_json import report_to_json

PATH = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def file(folder: Path, seed: int) -> Path:
    """Another valid adapter for every seed."""
    return af.write(folder / f"{seed}.safetensors", af.peft_tensors(af.factors(af.TOY_SD1, [PATH], seed=seed)))


def test_a_b_a_makes_three_versions_of_which_two_share_a_digest(store: Store, tmp_path: Path) -> None:
    a, b = file(tmp_path, 1), file(tmp_path, 2)
    made = [store.publish(path, UploadSpec(name="x")).version for path in (a, b, a)]
    assert [version.number for version in made] == [1, 2, 3]
    assert made[0].digest == made[2].digest != made[1].digest
    assert store.stats().blobs == 2


def test_the_latest_version_again_is_no_new_version(store: Store, tmp_path: Path) -> None:
    first = store.publish(file(tmp_path, 1), UploadSpec(name="x"))
    again = store.publish(file(tmp_path, 1), UploadSpec(name="x"))
    assert first.created and not again.created and first.version == again.version


def test_other_options_are_another_version_with_another_scale(store: Store, tmp_path: Path) -> None:
    path = file(tmp_path, 1)
    plain = store.publish(path, UploadSpec(name="x"))
    halved = store.publish(path, UploadSpec(name="x", options=InterpretOptions(alpha=plain.version.rank / 2)))
    assert halved.created and halved.version.digest != plain.version.digest
    assert halved.version.blob_digest == plain.version.blob_digest
    one, other = (af.compiled_delta(store.compiled(p.version), af.TOY_SD1)[PATH] for p in (plain, halved))
    assert one.norm() > 0 and (one / 2 - other).norm() <= 1e-6 * one.norm()


@pytest.mark.parametrize("how", ["loaded", "pushed again", "pushed by another name"])
def test_a_file_that_an_earlier_release_read_otherwise_is_reported_as_it_is_read_now(
    store: Store, tmp_path: Path, how: str
) -> None:
    """Two adapters of the same bytes, whose compiled file is of another form, of which one version has other bytes."""
    source = file(tmp_path, 1)
    for name in "xy":
        store.publish(source, UploadSpec(name=name))
    store.publish(file(tmp_path, 2), UploadSpec(name="x"))
    now = {ref: store.resolve(ref) for ref in ("x@1", "x@2", "y@1")}
    path = store.compiled(now["x@1"])
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(f'"format":"{FORMAT}"'.encode(), b'"format":"0"'))
    module = replace(now["x@1"].report.matched[0], scale=0.25)
    before = replace(now["x@1"].report, matched=(module,), warnings=("alpha_assumed: at that time",))
    with sqlite3.connect(tmp_path / "store" / "catalog.sqlite3") as catalog:
        catalog.execute("UPDATE version_details SET report = ? WHERE number = 1", (report_to_json(before),))
    catalog.close()
    assert store.resolve("x@1").report == store.resolve("y@1").report == before
    if how == "loaded":
        assert store.compiled(store.resolve("y@1")) == path
    else:
        published = store.publish(source, UploadSpec(name="y" if how == "pushed again" else "z"))
        assert published.version is not None and published.version.report == published.report == now["x@1"].report
    assert {ref: store.resolve(ref) for ref in now} == now


def test_references(store: Store, tmp_path: Path) -> None:
    for seed in (1, 2):
        store.publish(file(tmp_path, seed), UploadSpec(name="x"))
    assert store.resolve("x").number == store.resolve("x@2").number == 2
    assert store.resolve("x@1").number == 1
    for missing in ("x@3", "y", "x@prod"):
        with pytest.raises(NotFound):
            store.resolve(missing)
    for wrong in ("", "X", "x@", "x@0", "x@-1", "../x", "x@1@2", "x\n", "x" * 65):
        with pytest.raises(InvalidArgument):
            store.resolve(wrong)


def test_deleting_hides_and_an_upload_brings_back_with_the_next_number(store: Store, tmp_path: Path) -> None:
    version = store.publish(file(tmp_path, 1), UploadSpec(name="x")).version
    assert store.delete_adapter("x").delete_time is not None
    for call in (lambda: store.get_adapter("x"), lambda: store.resolve("x@1"), lambda: store.delete_adapter("x")):
        with pytest.raises(NotFound):
            call()
    assert store.list_adapters(10).items == ()
    assert store.compiled(version).exists(), "a running image still needs it"
    assert store.publish(file(tmp_path, 2), UploadSpec(name="x")).version.number == 2
    assert store.get_adapter("x").delete_time is None


def test_the_latest_version_brought_back_is_no_new_version(store: Store, tmp_path: Path) -> None:
    first = store.publish(file(tmp_path, 1), UploadSpec(name="x"))
    store.delete_adapter("x")
    again = store.publish(file(tmp_path, 1), UploadSpec(name="x"))
    assert again.version == first.version and not again.created
    assert store.get_adapter("x").delete_time is None


def test_what_people_say_of_an_adapter_is_kept(store: Store, tmp_path: Path) -> None:
    spec = UploadSpec(
        name="x", labels={"kind": "style"}, default_weight=0.7, trigger_words=("zib",), description="a test"
    )
    store.publish(file(tmp_path, 1), spec)
    store.publish(file(tmp_path, 2), UploadSpec(name="x"))
    record = store.get_adapter("x")
    assert (dict(record.labels), record.default_weight) == ({"kind": "style"}, 0.7)
    assert (record.trigger_words, record.description) == (("zib",), "a test")


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 16.5, -17.0])
def test_a_default_weight_no_request_may_ask_for_is_refused(store: Store, weight: float) -> None:
    with pytest.raises(InvalidArgument, match="default_weight"):
        store.begin_upload(UploadSpec(name="x", default_weight=weight))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 7))
def test_pages_of_any_size_list_everything_once(store: Store, tmp_path: Path, size: int) -> None:
    names = [f"n{number}" for number in range(5)]
    for name in names:
        store.publish(file(tmp_path, 1), UploadSpec(name=name))
    found, token = [], ""
    while True:
        page = store.list_adapters(size, token)
        assert len(page.items) <= size
        found += [record.name for record in page.items]
        token = page.next_page_token
        if not token:
            break
    assert found == names


def test_a_token_of_another_listing_is_refused(store: Store, tmp_path: Path) -> None:
    for name in ("x", "y"):
        for seed in (1, 2):
            store.publish(file(tmp_path, seed), UploadSpec(name=name))
    adapters, versions = store.list_adapters(1).next_page_token, store.list_versions("x", 1).next_page_token
    assert adapters and versions
    for call in (
        lambda: store.list_adapters(1, versions),
        lambda: store.list_versions("y", 1, versions),
        lambda: store.list_adapters(1, "garbage"),
        lambda: store.list_adapters(0),
    ):
        with pytest.raises(InvalidArgument):
            call()


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s") as store:
        store.register_layout(af.TOY_SD1)
        version = store.publish(file(tmp_path, 1), UploadSpec(name="x")).version
    with Store.open(tmp_path / "s") as store:
        assert store.resolve("x") == version
        store.compiled(version).unlink()
        assert af.compiled_delta(store.compiled(version), af.TOY_SD1)[PATH].norm() > 0


def test_a_damaged_blob_is_never_used(store: Store, tmp_path: Path) -> None:
    version = store.publish(file(tmp_path, 1), UploadSpec(name="x")).version
    store.compiled(version).unlink()
    blob = next((tmp_path / "store" / "blobs").rglob(version.blob_digest))
    blob.chmod(0o644)
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataLoss):
        store.compiled(version)


def test_a_store_of_a_newer_release_is_left_alone(tmp_path: Path) -> None:
    import sqlite3

    Store.open(tmp_path / "s").close()
    with sqlite3.connect(tmp_path / "s" / "catalog.sqlite3") as catalog:
        catalog.execute("update alembic_version set version_num = '9999'")
    catalog.close()
    with pytest.raises(SchemaTooNew):
        Store.open(tmp_path / "s")


def test_uploads_at_the_same_time_do_not_mix(store: Store, tmp_path: Path) -> None:
    files = {f"n{seed}": file(tmp_path, seed) for seed in range(6)}
    uploads = {name: store.begin_upload(UploadSpec(name=name)) for name in files}
    for name, upload in uploads.items():
        upload.write(files[name].read_bytes()[:50])
    for name, upload in uploads.items():
        upload.write(files[name].read_bytes()[50:])
    threads = [threading.Thread(target=upload.commit) for upload in uploads.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({store.resolve(name).blob_digest for name in files}) == 6


def test_racing_uploads_of_one_name_get_numbers_of_their_own(store: Store, tmp_path: Path) -> None:
    files = [file(tmp_path, seed) for seed in range(6)]
    threads = [threading.Thread(target=store.publish, args=(path, UploadSpec(name="x"))) for path in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = store.list_versions("x", 10).items
    assert [version.number for version in versions] == [6, 5, 4, 3, 2, 1]
    assert len({version.digest for version in versions}) == 6


def test_checking_only_leaves_nothing(store: Store, tmp_path: Path) -> None:
    published = store.publish(file(tmp_path, 1), replace(UploadSpec(name="x"), validate_only=True))
    assert published.version is None and len(published.report.matched) == 1
    left = [path for path in (tmp_path / "store").rglob("*") if path.is_file() and "catalog" not in path.name]
    assert left == [] and store.stats().versions == 0
