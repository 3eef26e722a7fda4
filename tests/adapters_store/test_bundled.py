"""Embeddings that came in a LoRA's file: kept with it, through every form that can say them."""

from collections.abc import Mapping
from pathlib import Path

import adapter_files as af
import pytest
import torch
from torch import Tensor

from loramux_store import AdapterChange, InterpretOptions, Store, UploadSpec, VersionRecord
from loramux_store.errors import Inexpressible, InvalidArgument
from loramux_store.forms.export import Form, export
from loramux_store.merging.entries import Entry, Method
from loramux_store.merging.merge import merge

KEY = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
Vectors = Mapping[str, Mapping[str, Tensor]]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ONE = {"a cat.v2": {"text_encoder": drawn(3, 24, seed=1)}, "<zib>": {"text_encoder": drawn(1, 24, seed=2)}}
TWO = {"a cat.v2": {"text_encoder": drawn(3, 24, seed=3), "text_encoder_2": drawn(3, 40, seed=4)}}
OTHER = {"dog": {"text_encoder": drawn(2, 24, seed=5)}}
KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def lora(seed: int, layout: str) -> dict[str, Tensor]:
    made = {"toy_sd1": af.TOY_SD1, "toy_sdxl": af.TOY_SDXL}[layout]
    return af.kohya_tensors(af.factors(made, [KEY], seed=seed, rank=2, alpha=1.0))


def put(store: Store, folder: Path, name: str, bundle: Vectors, layout: str = "toy_sd1", **said: bool) -> VersionRecord:
    tensors = lora(len(name), layout)
    for token, by_encoder in bundle.items():
        tensors |= {f"bundle_emb.{token}.{KEYS[encoder]}": each for encoder, each in by_encoder.items()}
    file = af.write(folder / "in.safetensors", tensors)
    version = store.publish(file, UploadSpec(name, layout=layout, options=InterpretOptions(**said))).version
    assert version is not None
    return version


def check(found: Vectors, wanted: Vectors) -> None:
    assert found.keys() == wanted.keys()
    for token, by_encoder in wanted.items():
        assert found[token].keys() == by_encoder.keys()
        assert all(torch.equal(found[token][encoder], each) for encoder, each in by_encoder.items())


@pytest.mark.parametrize("layout,bundle", [("toy_sd1", ONE), ("toy_sdxl", TWO)])
def test_kohyas_form_writes_them_back(store: Store, tmp_path: Path, layout: str, bundle: Vectors) -> None:
    version = put(store, tmp_path, "a", bundle, layout)
    (out,) = export(store, "a", "kohya", tmp_path / "out.safetensors")
    again = store.publish(out, UploadSpec("b", layout=layout)).version
    assert again is not None and again.bundled == version.bundled and again.digest != version.digest
    check(af.compiled_vectors(store.compiled(again)), bundle)
    made = store.layout(version.layout_digest)
    deltas = [af.compiled_delta(store.compiled(each), made)[KEY] for each in (version, again)]
    assert deltas[0].norm() > 0 and torch.equal(*deltas)


@pytest.mark.parametrize("form", ["diffusers", "peft"])
def test_other_forms_say_no_and_write_nothing(store: Store, tmp_path: Path, form: Form) -> None:
    put(store, tmp_path, "a", ONE)
    target = tmp_path / "out"
    with pytest.raises(Inexpressible, match="bundled embedding, which only kohya's form"):
        export(store, "a", form, target)
    with pytest.raises(Inexpressible, match="bundled embedding"):
        merge(store, [Entry("a", 1.0)], Method(), form, target)
    assert not target.exists()


def test_a_merge_keeps_them_whole(store: Store, tmp_path: Path) -> None:
    """Whatever the weights; of an entry that is off none."""
    put(store, tmp_path, "a", ONE)
    put(store, tmp_path, "bb", OTHER)
    for name, weight, wanted in (("both", 0.5, ONE | OTHER), ("one", 0.0, OTHER)):
        (out,) = merge(store, [Entry("a", weight), Entry("bb", -2.0)], Method(), "kohya", tmp_path / name)
        version = store.publish(out, UploadSpec(name, layout="toy_sd1")).version
        assert version is not None
        check(af.compiled_vectors(store.compiled(version)), wanted)


def test_a_merge_of_two_that_mean_another_by_one_token_is_refused(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "a", ONE)
    put(store, tmp_path, "bb", {"A Cat.v2": OTHER["dog"]})
    with pytest.raises(InvalidArgument, match=r"a@1 and bb@1.*one of them: both bundle an embedding of the token"):
        merge(store, [Entry("a", 1.0), Entry("bb", 1.0)], Method(), "kohya", tmp_path / "out")
    merge(store, [Entry("a", 1.0), Entry("bb", 0.0)], Method(), "kohya", tmp_path / "out")


def test_they_outlive_a_restart_and_a_lost_file(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        store.register_layout(af.TOY_SD1)
        version = put(store, tmp_path, "a", ONE)
    with Store.open(tmp_path / "store") as store:
        found = store.resolve("a")
        assert found == version
        assert store.get_adapter("a").latest_version.bundled == version.bundled
        file = store.compiled(found)
        for damage in (b"", file.read_bytes()[:-4]):
            file.write_bytes(damage)
            check(af.compiled_vectors(store.compiled(found)), ONE)


def test_filters_find_tokens_whatever_the_owner_says(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "a", ONE)
    put(store, tmp_path, "bb", {})
    store.update_adapter("a", AdapterChange(trigger_words=("something",)))
    for word in ("<ZIB>", "something", "v2"):
        assert [record.name for record in store.list_adapters(5, filter=word).items] == ["a"]


def test_versions_that_were_accepted_without_them_stay_so(store: Store, tmp_path: Path) -> None:
    """As all were before they were read: another digest, so other pictures, and never a file of the new ones."""
    old, new = put(store, tmp_path, "a", ONE, bundled=False), put(store, tmp_path, "a", ONE)
    assert (old.number, new.number) == (1, 2) and old.blob_digest == new.blob_digest and old.digest != new.digest
    assert old.bundled == () and {each.trigger for each in new.bundled} == ONE.keys()
    for version, bundle in ((old, {}), (new, ONE)):
        store.compiled(version).unlink()
        check(af.compiled_vectors(store.compiled(store.resolve(f"a@{version.number}"))), bundle)


def test_a_lora_without_any_keeps_the_digest_that_it_had(store: Store, tmp_path: Path) -> None:
    found = [put(store, tmp_path, "a", {}, bundled=said) for said in (True, False)]
    assert found[0].digest == found[1].digest and found[1].number == 1


def test_a_trigger_is_not_for_what_is_bundled(store: Store, tmp_path: Path) -> None:
    tensors = lora(1, "toy_sd1") | {"bundle_emb.cat.clip_l": drawn(1, 24, seed=0)}
    spec = UploadSpec("a", layout="toy_sd1", options=InterpretOptions(trigger="x"))
    with pytest.raises(InvalidArgument, match=r"options.trigger: got 'x', expected none"):
        store.publish(af.write(tmp_path / "in.safetensors", tensors), spec)
