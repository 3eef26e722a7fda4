"""Embedding files in the forms people have: what becomes of them, and what is refused (formats.md 4.6, by its ids)."""

from pathlib import Path

import adapter_files as af
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from loramux_store import Embedding, InterpretOptions, Published, Store, UploadSpec
from loramux_store.errors import InvalidArgument
from loramux_store.seal import SEAL, SEAL_BYTES

Tensors = dict[str, Tensor]
ONE, PAIR = {"text_encoder": 24}, {"text_encoder": 24, "text_encoder_2": 40}


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def publish(store: Store, folder: Path, tensors: Tensors, name: str = "cat-toy", **said: object) -> Published:
    trigger = said.pop("trigger", None)
    options = InterpretOptions(trigger=str(trigger)) if trigger is not None else InterpretOptions()
    file = af.write(folder / "a.safetensors", tensors)
    return store.publish(file, UploadSpec(name, options=options, **said))  # type: ignore[arg-type]


V, W = drawn(3, 24), drawn(3, 40, seed=1)
FORMS: dict[str, tuple[Tensors, str, str, Embedding]] = {
    "kohya": ({"emb_params": V}, "toy_sd1", "emb_params", Embedding("cat-toy", 3, ONE)),
    "A1111": ({"string_to_param.*": V}, "toy_sd1", "string_to_param", Embedding("cat-toy", 3, ONE)),
    "A1111 with a token": ({"string_to_param.dogtoy": V}, "toy_sd1", "string_to_param", Embedding("dogtoy", 3, ONE)),
    "diffusers": ({"<cat> toy": V}, "toy_sd1", "diffusers", Embedding("<cat> toy", 3, ONE)),
    "one vector": ({"<cat>": drawn(24)}, "toy_sd1", "diffusers", Embedding("<cat>", 1, ONE)),
    "another width": ({"word": drawn(32)}, "toy_sd2", "diffusers", Embedding("word", 1, {"text_encoder": 32})),
    "SDXL": ({"clip_g": W, "clip_l": V}, "toy_sdxl", "clip", Embedding("cat-toy", 3, PAIR)),
    "pivotal": (
        {"text_encoders_0": V, "text_encoders_1": W}, "toy_sdxl", "clip", Embedding("cat-toy", 3, PAIR)
    ),
    "clip_l alone": ({"clip_l": V}, "toy_sd1", "clip", Embedding("cat-toy", 3, ONE)),
    "bundle": (
        {"bundle_emb.ema yasuhara. jr.clip_l": V, "bundle_emb.ema yasuhara. jr.clip_g": W},
        "toy_sdxl", "bundle", Embedding("ema yasuhara. jr", 3, PAIR),
    ),
    "bundled A1111": (
        {"bundle_emb.ema.string_to_param.*": V}, "toy_sd1", "bundle", Embedding("ema", 3, ONE)
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms(store: Store, tmp_path: Path, form: str) -> None:
    tensors, layout, family, embedding = FORMS[form]
    published = publish(store, tmp_path, tensors)
    version = published.version
    assert version is not None and (version.kind, version.rank, version.ranks) == ("embedding", 0, {})
    assert version.layout_name == published.report.layout_name == layout
    assert published.report.family == family and published.report.warnings == ()
    assert version.embedding == published.report.embedding == embedding
    assert version.options.trigger == embedding.trigger
    compiled = load_file(store.compiled(version))
    assert compiled.pop(SEAL).shape == (SEAL_BYTES,)
    assert {name: list(vectors.shape) for name, vectors in compiled.items()} == {
        f"vectors.0.{name}": [embedding.vectors, width] for name, width in embedding.widths.items()
    }
    source = {entry.shape[-1]: entry.reshape(-1, entry.shape[-1]) for entry in tensors.values()}
    assert all(torch.equal(vectors, source[vectors.shape[-1]]) for vectors in compiled.values())


@pytest.mark.parametrize("dtype", af.DTYPES.values(), ids=str)
def test_every_dtype_becomes_float32(store: Store, tmp_path: Path, dtype: torch.dtype) -> None:
    vectors = drawn(2, 24, dtype=dtype)
    version = publish(store, tmp_path, {"emb_params": vectors}).version
    assert version is not None
    assert torch.equal(load_file(store.compiled(version))["vectors.0.text_encoder"], vectors.float())


def test_layouts_of_equal_text_encoders_leave_nothing_open(store: Store, tmp_path: Path) -> None:
    wide = af.toy_layout("wide", af.UNetConfig((16, 32, 32, 32), (1, 1, 1, 0), 1, 24, False),
                         text_encoder=af.TextEncoderConfig(24, 96, 3))  # fmt: skip
    store.register_layout(wide)
    found = publish(store, tmp_path, {"emb_params": V}).report
    assert found.layout_name in ("toy_sd1", "wide") and "too" in found.evidence[1]
    said = publish(store, tmp_path, {"emb_params": V}, layout="wide").report
    assert said.layout_name == "wide" and "toy_sd1" in said.evidence[1]


def test_the_trigger_is_part_of_the_digest(store: Store, tmp_path: Path) -> None:
    one, same, other, named = (
        publish(store, tmp_path, {"<cat>": V}, name, trigger=trigger).version
        for name, trigger in (("a", None), ("a", "<cat>"), ("a", "<dog>"), ("b", "<cat>"))
    )
    assert one is not None and same is not None and other is not None and named is not None
    assert [each.number for each in (one, same, other, named)] == [1, 1, 2, 1]
    assert one.digest == named.digest != other.digest
    by_name = [publish(store, tmp_path, {"emb_params": V}, name).version for name in ("c", "d")]
    assert len({version.digest for version in by_name if version is not None}) == 2


def test_a_trigger_is_normalised_and_outlives_a_restart(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        store.register_layout(af.TOY_SD1)
        published = publish(store, tmp_path, {"emb_params": V}, trigger="cafe\u0301")
    with Store.open(tmp_path / "store") as store:
        version = store.resolve("cat-toy")
        assert version == published.version
        assert version.embedding is not None and version.embedding.trigger == "caf\u00e9"
        file = store.compiled(version)
        for damage in (b"", file.read_bytes()[:-4]):
            file.write_bytes(damage)
            assert torch.equal(load_file(store.compiled(version))["vectors.0.text_encoder"], V)


@pytest.mark.parametrize("trigger", ["", " cat", "cat ", "a\0b", "a\nb", "*", "x" * 257])
def test_unusable_triggers(store: Store, tmp_path: Path, trigger: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        publish(store, tmp_path, {"emb_params": V}, trigger=trigger)
    assert caught.value.field == "options.trigger"


def test_an_unusable_token_of_the_file_gives_way_to_the_name(store: Store, tmp_path: Path) -> None:
    report = publish(store, tmp_path, {"string_to_param." + "x" * 300: V}).report
    assert report.embedding is not None and report.embedding.trigger == "cat-toy"
    assert "no usable trigger" in report.warnings[0]


def test_options_of_the_other_kind_are_refused(store: Store, tmp_path: Path) -> None:
    lora = af.kohya_tensors(af.factors(af.TOY_SD1, rank=1))
    with pytest.raises(InvalidArgument, match=r"options\.trigger: got 'x', expected none"):
        publish(store, tmp_path, lora, trigger="x")
    file = af.write(tmp_path / "a.safetensors", {"emb_params": V})
    with pytest.raises(InvalidArgument, match=r"options\.alpha"):
        store.publish(file, UploadSpec("x", options=InterpretOptions(alpha=1.0)))


def test_zeros_are_warned_of(store: Store, tmp_path: Path) -> None:
    (warning,) = publish(store, tmp_path, {"emb_params": torch.zeros(2, 24)}).report.warnings
    assert warning.startswith("all_zero")


@pytest.mark.parametrize(
    "tensors,name,options,warned",
    [
        ({"emb_params": V}, "red", {}, True),
        ({"emb_params": V}, "red", {"trigger": "zib"}, False),
        ({"emb_params": V}, "zib", {"trigger": "Red"}, True),
        ({"the": V}, "zib", {}, True),
        ({"<red>": drawn(24)}, "zib", {}, False),
        ({"emb_params": V}, "red-hat", {}, False),
    ],
)
def test_a_trigger_that_is_a_common_word_is_warned_of(
    store: Store, tmp_path: Path, tensors: Tensors, name: str, options: dict[str, str], warned: bool
) -> None:
    published = publish(store, tmp_path, tensors, name, **options)
    codes = [warning.partition(":")[0] for warning in published.report.warnings]
    assert ("trigger_common_word" in codes) == warned and published.created


def test_a_bundled_trigger_that_is_a_common_word_is_warned_of(store: Store, tmp_path: Path) -> None:
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = af.kohya_tensors(af.factors(af.TOY_SD1, [path]))
    for token, warned in (("cat", True), ("<cat>", False)):
        report = publish(store, tmp_path, {**tensors, f"bundle_emb.{token}.emb_params": V}).report
        assert any(warning.startswith("trigger_common_word: ") for warning in report.warnings) == warned
