"""Adapter files of trained factors mean the same in every tool that reads their form."""

import errno
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tiny_pipeline import layout_of as layout_of_pipeline
from tiny_pipeline import peer_deltas, tiny_pipeline
from torch import Tensor
from trained_factors import PROGRESS, delta, deltas, facts, trained
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from loramux_store import InterpretOptions, Layout, Store, UploadSpec, known_layout
from loramux_store.forms.factors import Factors, read_factors
from loramux_store.layout import ModuleSpec
from loramux_train.output.adapter_file import FORMS, Form, Planned, Saved, check_form, save_adapter
from loramux_train.output.base_layout import canonical_path, layout_of
from loramux_train.output.errors import NothingLearnt, Unsayable
from loramux_train.output.trained import TrainedModule, balanced, scale_of

PEER = 3e-6  # peers multiply in float32
EXACT = 3e-7  # float32 factors, multiplied in float64
HALF = {"fp16": 2.0**-10, "bf16": 2.0**-7}  # two factors, each rounded to 11 or 8 bits
ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
KINDS = {
    "lora": (ATTENTION, {}),
    "locon": ((*ATTENTION, ".proj_in", ".conv1", "conv2", "ff.net.0.proj", "q_proj", "fc2"), {}),
    "rslora": ((*ATTENTION, ".conv1", "v_proj"), {"rslora": True}),
    "dora": ((*ATTENTION, ".conv1", "q_proj", "fc1"), {"dora": True}),
    "dora and rslora": ((*ATTENTION, "q_proj"), {"dora": True, "rslora": True}),
}


@pytest.fixture
def pipeline() -> StableDiffusionPipeline:
    return tiny_pipeline()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def chosen(layout: Layout, ends: tuple[str, ...]) -> list[str]:
    return [path for path in layout.modules if path.endswith(ends)]


def save(
    modules: list[TrainedModule], layout: Layout, form: Form, target: Path, precision: str = "fp32", **said: object
) -> Saved:
    return save_adapter(modules, layout, facts(**said), PROGRESS, form, precision, target)  # type: ignore[arg-type]


def stored(store: Store, layout: Layout, saved: Saved) -> dict[str, Factors]:
    """What our store makes of it, without a warning."""
    store.register_layout(layout)
    found: dict[str, Factors] = {}
    for file in saved.files:
        if file.suffix != ".json":
            config = file.with_name("adapter_config.json")
            options = InterpretOptions(config.read_text() if config.exists() else None)
            published = store.publish(file, UploadSpec("a", layout=layout.digest, options=options))
            assert published.version is not None
            assert not published.report.warnings and not published.report.ignored
            found |= {f.path: f for f in read_factors(store.compiled(published.version), layout)}
    return found


def same(got: Mapping[str, Tensor | None], wanted: Mapping[str, Tensor], bound: float) -> None:
    assert got.keys() == wanted.keys()
    for path, right in wanted.items():
        found = got[path]
        assert found is not None and right.norm() > 0
        assert (found.double().reshape(right.shape) - right).norm() <= bound * right.norm(), path


def magnitudes_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {
        name: next(iter(module.lora_magnitude_vector.values())).weight.detach().flatten()
        for name, module in model.named_modules()
        if len(getattr(module, "lora_magnitude_vector", ()))
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_the_store_reads_what_was_trained(
    store: Store, tmp_path: Path, pipeline: StableDiffusionPipeline, form: Form, kind: str
) -> None:
    """Ranks and alphas differ from module to module, and from each other."""
    layout, (ends, said) = layout_of_pipeline(pipeline), KINDS[kind]
    modules = trained(layout, chosen(layout, ends), **said)
    found = stored(store, layout, save(modules, layout, form, tmp_path / "out"))
    same({path: f.delta() for path, f in found.items()}, deltas(modules), EXACT)
    for module in modules:
        at = found[module.full_path]
        assert at.axis == ("" if module.magnitude is None else "output") and at.rank == module.rank
        if module.magnitude is not None:
            assert torch.equal(at.parts["m"], module.magnitude)


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_reads_its_form(tmp_path: Path, pipeline: StableDiffusionPipeline, kind: str) -> None:
    layout, (ends, said) = layout_of_pipeline(pipeline), KINDS[kind]
    modules = trained(layout, chosen(layout, ends), **said)
    file = save(modules, layout, "diffusers", tmp_path / "a.safetensors").path
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="a")
    same(peer_deltas(pipeline), deltas(modules), PEER)
    loaded = magnitudes_of(pipeline.unet) | magnitudes_of(pipeline.text_encoder)
    wanted = {module.path: module.magnitude for module in modules if module.magnitude is not None}
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(loaded[path], wanted[path]) for path in wanted)


PROJECTED = (*ATTENTION, ".conv1", ".q_proj", ".k_proj", ".out_proj", ".fc1")
KOHYA: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
    "ranks that differ": (PROJECTED, {"alpha": 1.0}, ""),
    "rsLoRA of one rank": (PROJECTED, {"alpha": 1.0, "rank": 3, "rslora": True}, ""),
    "text encoders but for their attention": ((*ATTENTION, "fc1"), {"alpha": 1.0}, ""),
    "alphas that differ": (ATTENTION, {"rank": 3}, "alphas that differ"),
    "rsLoRA of ranks that differ": (ATTENTION, {"alpha": 1.0, "rslora": True}, "alphas that differ"),
    "no output projection": ((*ATTENTION, "q_proj", "v_proj"), {"alpha": 1.0}, "of text_encoder without any out_proj"),
    "DoRA": (ATTENTION, {"alpha": 1.0, "dora": True}, "magnitudes"),
}
"""What is trained, and how; what is said of it."""


@pytest.mark.parametrize("kind", KOHYA)
def test_what_diffusers_does_not_read_of_kohyas_form_is_said(
    tmp_path: Path, pipeline: StableDiffusionPipeline, kind: str
) -> None:
    layout, (ends, said, warned) = layout_of_pipeline(pipeline), KOHYA[kind]
    modules = trained(layout, chosen(layout, ends), **said)
    planned = [Planned(m.full_path, m.rank, m.magnitude is not None, scale_of(m)) for m in modules]
    told = check_form("kohya", planned, layout)
    assert [warned in sentence for sentence in told] == ([True] if warned else [])
    file = save(modules, layout, "kohya", tmp_path / "a.safetensors").path
    if not warned:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="a")
        return same(peer_deltas(pipeline), deltas(modules), PEER)
    with warnings.catch_warnings():  # PEFT's, of alphas that it has no module for
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises((AssertionError, ValueError)):  # ValueError: nothing is loaded
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="a")
            same(peer_deltas(pipeline), deltas(modules), PEER)
            assert magnitudes_of(pipeline.unet)


def small_sdxl() -> StableDiffusionXLPipeline:
    """As deep as SDXL where names are made from depth."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        layers_per_block=2,
        cross_attention_dim=40,
        attention_head_dim=4,
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    texts = [
        CLIPTextConfig(
            vocab_size=100, hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            projection_dim=16, bos_token_id=1, eos_token_id=2,
        )
        for width in (16, 24)
    ]  # fmt: skip
    encoders = CLIPTextModel(texts[0]), CLIPTextModelWithProjection(texts[1])
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    return StableDiffusionXLPipeline(vae, *encoders, None, None, unet, DDIMScheduler(), add_watermarker=False)


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_diffusers_reads_sdxl(tmp_path: Path, form: Form) -> None:
    pipeline = small_sdxl()
    parts = {name: getattr(pipeline, name) for name in ("unet", "text_encoder", "text_encoder_2")}
    layout = layout_of(parts, "small")
    text = ("fc1", "q_proj", *(["out_proj"] if form == "kohya" else []))
    modules = trained(layout, chosen(layout, (*ATTENTION, "proj_in", "ff.net.2", *text)), rank=2, alpha=3.0)
    assert {module.part for module in modules} == set(parts)
    base = replace(facts().base, family="sdxl")
    file = save(modules, layout, form, tmp_path / "a.safetensors", base=base).path
    pipeline.load_lora_weights(str(tmp_path), weight_name=file.name, adapter_name="a")
    theirs = {
        canonical_path(part, name): module.get_delta_weight("a").detach()
        for part, model in parts.items()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    same(theirs, deltas(modules), PEER)


@pytest.mark.parametrize("kind", KINDS)
def test_lycoris_reads_kohyas_form(tmp_path: Path, pipeline: StableDiffusionPipeline, kind: str) -> None:
    """The whole change, magnitudes worked in, by the layers of LyCORIS."""
    from lycoris.modules import get_module, make_module

    layout, (ends, said) = layout_of_pipeline(pipeline), KINDS[kind]
    modules = trained(layout, chosen(layout, ends), **said)
    file = safetensors.torch.load_file(save(modules, layout, "kohya", tmp_path / "a.safetensors").path)
    stems = {name.partition(".")[0] for name in file}
    for module in modules:
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[module.part]
        stem = prefix + module.path.replace(".", "_")
        stems.remove(stem)
        layer = getattr(pipeline, module.part).get_submodule(module.path)
        theirs = make_module(*get_module(file, stem), stem, layer).get_merged_weight(1.0)[0]
        before = layer.weight.detach().double()
        after = before + delta(module)
        if module.magnitude is not None:
            lengths = after.flatten(1).norm(dim=1)
            after *= (module.magnitude.double() / lengths).view(-1, *(1,) * (after.dim() - 1))
        assert (after - before).norm() > 0.01 * before.norm()
        assert (theirs.detach().double() - after).norm() < PEER * after.norm(), stem
    assert not stems


@pytest.mark.parametrize("kind", KINDS)
def test_peft_reads_its_form(tmp_path: Path, pipeline: StableDiffusionPipeline, kind: str) -> None:
    """Once as a whole model, once put into a model that has fresh factors."""
    from peft import LoraConfig, PeftModel, inject_adapter_in_model, set_peft_model_state_dict

    layout, (ends, said) = layout_of_pipeline(pipeline), KINDS[kind]
    modules = trained(layout, chosen(layout, ends), **said)
    saved = save(modules, layout, "peft", tmp_path / "out")
    other = tiny_pipeline()
    with warnings.catch_warnings():  # PEFT asks transformers' models for a name they no longer like
        warnings.simplefilter("ignore", FutureWarning)
        for part in {module.part for module in modules}:
            loaded = PeftModel.from_pretrained(getattr(pipeline, part), str(saved.path / part))
            setattr(pipeline, part, loaded.base_model.model)
            config = LoraConfig.from_pretrained(str(saved.path / part))
            inject_adapter_in_model(config, getattr(other, part))
            file = safetensors.torch.load_file(saved.path / part / "adapter_model.safetensors")
            bare = {name.removeprefix("base_model.model."): tensor for name, tensor in file.items()}
            assert not set_peft_model_state_dict(getattr(other, part), bare).unexpected_keys
    same(peer_deltas(pipeline), deltas(modules), PEER)
    same(peer_deltas(other), deltas(modules), PEER)
    wanted = {module.path: module.magnitude for module in modules if module.magnitude is not None}
    loaded = magnitudes_of(pipeline.unet) | magnitudes_of(pipeline.text_encoder)
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(loaded[path], wanted[path]) for path in wanted)


def test_two_encoders_and_the_names_of_the_original_code(store: Store, tmp_path: Path) -> None:
    """SDXL, as kohya's scripts name it."""
    layout = known_layout("sdxl")
    paths = [
        "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
        "unet.up_blocks.0.resnets.0.conv1",
        "text_encoder.text_model.encoder.layers.3.self_attn.q_proj",
        "text_encoder_2.text_model.encoder.layers.3.mlp.fc1",
    ]
    modules = trained(layout, paths, rank=2)
    saved = save(modules, layout, "kohya", tmp_path / "a.safetensors", base=replace(facts().base, family="sdxl"))
    names = {name.partition(".")[0] for name in safetensors.torch.load_file(saved.path)}
    assert names == {
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k",
        "lora_unet_output_blocks_0_0_in_layers_2",
        "lora_te1_text_model_encoder_layers_3_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_3_mlp_fc1",
    }
    found = stored(store, layout, saved)
    same({path: f.delta() for path, f in found.items()}, deltas(modules), EXACT)


@pytest.mark.parametrize("size", [0.05, 1e-7, 1e-12], ids=["usual", "small", "tiny"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_small_factors_survive_rounding(
    store: Store, tmp_path: Path, pipeline: StableDiffusionPipeline, precision: str, form: Form, size: float
) -> None:
    """Rounded as they are, an up of 1e-12 is zero in fp16."""
    layout = layout_of_pipeline(pipeline)
    modules = trained(layout, chosen(layout, ATTENTION), size=size)
    saved = save(modules, layout, form, tmp_path / "out", precision)
    dtypes = {t.dtype for f in saved.files if f.suffix != ".json" for t in safetensors.torch.load_file(f).values()}
    assert dtypes - {torch.float32} == {torch.float16 if precision == "fp16" else torch.bfloat16}
    found = stored(store, layout, saved)
    same({path: f.delta() for path, f in found.items()}, deltas(modules), HALF[precision])


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(-40, 3), st.floats(-40, 3), st.floats(0.01, 100)), min_size=1, max_size=4))
def test_balancing_changes_no_delta(sizes: list[tuple[float, float, float]]) -> None:
    """Factors from 2**-40 to 2**3, side by side in one adapter."""
    spec, generator = ModuleSpec("linear", (5, 6)), torch.Generator().manual_seed(0)
    modules = [
        Factors(
            f"unet.m{at}",
            spec,
            {"a": 2**a * torch.randn(2, 6, generator=generator), "b": 2**b * torch.randn(2, 5, generator=generator)},
            scale,
        )
        for at, (a, b, scale) in enumerate(sizes)
    ]
    even = balanced(modules)
    assert len({math.log2(new.scale / old.scale) for old, new in zip(modules, even, strict=True)}) == 1
    for old, new in zip(modules, even, strict=True):
        assert torch.equal(new.delta(), old.delta())
        largest = [float(new.parts[name].abs().max()) for name in "ab"]
        assert 0.5 <= largest[0] / largest[1] <= 2
        assert min(largest) >= 2.0**-13


def test_what_a_form_cannot_say_is_said_before_training(tmp_path: Path, pipeline: StableDiffusionPipeline) -> None:
    layout = layout_of_pipeline(pipeline)
    one, two = chosen(layout, (".attn1.to_q",))[:2]
    mixed = [Planned(one, 4, dora=True), Planned(two, 4)]
    check_form("kohya", mixed, layout)
    for form in ("diffusers", "peft"):
        check_form(form, [Planned(one, 4, dora=True)], layout)
        with pytest.raises(Unsayable, match=r"use_dora is for all; kohya's form can") as refused:
            check_form(form, mixed, layout)
        assert two in str(refused.value)
    text = [Planned(path, 4) for path in chosen(layout, ("fc1", "fc2"))]
    check_form("kohya", text, layout)
    check_form("diffusers", [*text, Planned(chosen(layout, ("v_proj",))[0], 4)], layout)
    with pytest.raises(Unsayable, match=r"cannot read text_encoder.*train those too, or save as kohya or peft"):
        check_form("diffusers", text, layout)
    with pytest.raises(Unsayable, match="has no such module"):
        check_form("kohya", [Planned("unet.nowhere", 4)], layout)
    some = [*trained(layout, [one], dora=True), *trained(layout, [two])]
    with pytest.raises(Unsayable, match="use_dora"):
        save(some, layout, "peft", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_worth_a_file_gets_none(tmp_path: Path, pipeline: StableDiffusionPipeline, form: Form) -> None:
    layout = layout_of_pipeline(pipeline)
    good, other = trained(layout, chosen(layout, (".attn1.to_q",))[:2])
    before = save([good], layout, form, tmp_path / "out")
    kept = [file.read_bytes() for file in before.files]
    for bad, why in (
        ([replace(m, up=0 * m.up) for m in (good, other)], "every up factor is zero"),
        ([good, replace(other, down=other.down / 0)], f"{other.full_path}: its factors are not finite"),
        ([], "no module"),
    ):
        with pytest.raises(NothingLearnt, match=why):
            save(bad, layout, form, tmp_path / "out")
    shapes = re.escape(f"{good.full_path}: got down (1, 7) and up (8, 1), expected (1, 8) and (8, 1)")
    with pytest.raises(Unsayable, match=shapes):
        save([replace(good, down=good.down[:, 1:])], layout, form, tmp_path / "out")
    huge = replace(good, down=1e6 * good.down, up=1e6 * good.up)
    with pytest.raises(Unsayable, match="does not fit fp16; save as bf16 or fp32"):
        save([huge], layout, form, tmp_path / "out", "fp16")
    assert [file.read_bytes() for file in before.files] == kept
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("form", FORMS)
def test_the_same_run_gives_the_same_bytes_and_replaces_what_was_there(
    tmp_path: Path, pipeline: StableDiffusionPipeline, form: Form
) -> None:
    layout = layout_of_pipeline(pipeline)
    modules = trained(layout, chosen(layout, ATTENTION))
    first = [file.read_bytes() for file in save(modules, layout, form, tmp_path / "a", "fp16").files]
    save(modules[:1], layout, form, tmp_path / "b", "fp16")
    again = save(modules[::-1], layout, form, tmp_path / "b", "fp16")
    assert [file.read_bytes() for file in again.files] == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, pipeline: StableDiffusionPipeline, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layout_of_pipeline(pipeline)
    modules = trained(layout, chosen(layout, ATTENTION))
    saved = save(modules[:1], layout, form, tmp_path / "out")
    kept = [file.read_bytes() for file in saved.files]

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        save(modules, layout, form, tmp_path / "out")
    assert [file.read_bytes() for file in saved.files] == kept
    assert not list(tmp_path.rglob(".*"))


def test_the_hash_is_that_of_the_data(tmp_path: Path, pipeline: StableDiffusionPipeline) -> None:
    layout = layout_of_pipeline(pipeline)
    file = save(trained(layout, chosen(layout, ATTENTION)), layout, "kohya", tmp_path / "a", "fp16").path
    data = file.read_bytes()
    after = data[8 + int.from_bytes(data[:8], "little") :]
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["modelspec.hash_sha256"] == "0x" + hashlib.sha256(after).hexdigest()
    assert metadata["sshs_model_hash"] == hashlib.sha256(after).hexdigest()
    assert all(isinstance(value, str) for value in json.loads(data[8 : -len(after)])["__metadata__"].values())
