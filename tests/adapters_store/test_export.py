"""What leaves the store means what came in: read again by us, by diffusers and by PEFT."""

import errno
import json
import os
import warnings
from collections.abc import Mapping
from math import prod
from pathlib import Path

import adapter_files as af
import adapter_kinds as kinds
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from tiny_pipeline import layout_of, peer_deltas, tiny_pipeline
from torch import Tensor

from loramux_store import InterpretOptions, Layout, Store, UploadSpec
from loramux_store.errors import Inexpressible
from loramux_store.forms.export import export

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
LINEAR, CONV = f"unet.{BLOCK}.attn2.to_k", "unet.down_blocks.1.resnets.0.conv2"
PEER = 3e-6  # the peer multiplies in float32
EXACT = 1e-6
CHOSEN = (".attn1.to_q", "proj_in", "1.conv1", "2.self_attn.q_proj")


def publish(
    store: Store, file: Path, name: str, layout: str | None = "toy_sd1", config: str | None = None
) -> dict[str, Tensor]:
    """Publishes a file; the deltas of its compiled form."""
    options = InterpretOptions(peft_config=config)
    version = store.publish(file, UploadSpec(name, layout=layout, options=options)).version
    assert version is not None
    return af.compiled_delta(store.compiled(version), store.layout(version.layout_digest))


def same(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], bound: float = EXACT) -> None:
    assert got.keys() == wanted.keys()
    for path, delta in wanted.items():
        assert delta.norm() > 0
        assert (got[path] - delta).norm() <= bound * delta.norm(), path


def every_kind(layout: Layout) -> dict[str, kinds.Sample]:
    """Each kind on a linear layer and on a convolution, then with magnitudes of either axis."""
    generator = torch.Generator().manual_seed(3)
    makes = [*kinds.KINDS.values(), kinds.lora(3, 0.7)]
    makes += [kinds.decomposed(make, axis) for make in (kinds.lora(2, 3.0), kinds.full) for axis in ("output", "input")]
    makes += [kinds.loha_tucker(2, 3.0), kinds.lokr((2, 4), None, 1, 0.5, tucker=True)]
    made: dict[str, kinds.Sample] = {}
    for kind in ("linear", "conv2d"):
        large = sorted(layout.modules.items(), key=lambda item: -prod(item[1].shape))  # small ones are dense
        free = (p for p, s in large if s.kind == kind and s.shape[0] % 8 == s.shape[1] % 8 == 0)
        for make in makes if kind == "conv2d" else makes[:-2]:
            path = next(free)
            made[path] = make(layout.modules[path].shape, generator)
    return made


def test_kohyas_form_can_say_every_kind_on_every_layer(store: Store, tmp_path: Path) -> None:
    made = every_kind(af.TOY_SD1)
    tensors = {name: t for path, each in made.items() for name, t in kinds.stem_tensors(path, each).items()}
    tensors |= {"lora_unet_down_blocks_0_resnets_0_norm1.w_norm": torch.randn(8)}
    tensors |= {"lora_unet_conv_norm_out.b_norm": torch.randn(8)}
    before = publish(store, af.write(tmp_path / "a.safetensors", tensors), "a")
    (out,) = export(store, "a", "kohya", tmp_path / "b.safetensors")
    after = publish(store, out, "b")
    same(after, before)
    same({p: after[p] for p in made}, {p: each.delta for p, each in made.items()})

    (table, parts), (table_after, parts_after) = (af.compiled_parts(store.compiled(store.resolve(n))) for n in "ab")
    assert {p: row["axis"] for p, row in table.items()} == {p: row["axis"] for p, row in table_after.items()}
    exact = ("bias", "weight", "m")
    for path in parts:
        for part in exact:
            assert (part in parts[path]) == (part in parts_after[path])
            if part in parts[path]:
                assert torch.equal(parts[path][part], parts_after[path][part])
    assert {part for found in parts.values() for part in found} >= {*exact, "a", "w1", "p1", "delta"}


@pytest.mark.parametrize("layout", [af.TOY_SD1, af.TOY_SDXL], ids=lambda layout: layout.name)
@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_one_file_for_all_models(store: Store, tmp_path: Path, layout: Layout, form: str) -> None:
    """Ranks and alphas differ from module to module."""
    made = af.factors(layout, [path for path in layout.modules if path.endswith(CHOSEN)])
    alphas = {p: af.Factors(f.spec, f.down, f.up, None, 0.3 + i % 4) for i, (p, f) in enumerate(made.items())}
    two = len(layout.components) == 3
    file = af.write(tmp_path / "a.safetensors", af.kohya_tensors(alphas, two_encoders=two))
    before = publish(store, file, "a", layout.name)
    (out,) = export(store, "a", form, tmp_path / "b.safetensors")
    same(publish(store, out, "b", layout.name), before)
    same(before, {path: af.dense(module) for path, module in alphas.items()})
    if form == "kohya":  # SDXL's UNet by the names of its original code, as kohya's own scripts write it
        named = af.kohya_tensors(alphas, sgm=two, two_encoders=two)
        assert safetensors.torch.load_file(out).keys() == named.keys()


def test_a_folder_for_each_model_in_pefts_form(store: Store, tmp_path: Path) -> None:
    made = af.factors(af.TOY_SD1, [path for path in af.TOY_SD1.modules if path.endswith(CHOSEN)], alpha=3.0)
    before = publish(store, af.write(tmp_path / "a.safetensors", af.kohya_tensors(made)), "a")
    written = export(store, "a", "peft", tmp_path / "out")
    assert len(written) == 4
    after: dict[str, Tensor] = {}
    for component in ("unet", "text_encoder"):
        folder = tmp_path / "out" / component
        config = (folder / "adapter_config.json").read_text()
        after |= publish(store, folder / "adapter_model.safetensors", "b", config=config)
    same(after, before)


@pytest.mark.parametrize("form", ["kohya", "diffusers", "diffusers with magnitudes", "peft", "peft with magnitudes"])
def test_diffusers_and_peft_load_the_same_deltas(store: Store, tmp_path: Path, form: str) -> None:
    """Ranks and alphas differ. Of kohya's form diffusers 0.42.1 takes no magnitudes and no attention of text encoders,
    and no alphas of a UNet's attention that differ."""
    form, _, decomposed = form.partition(" with ")
    pipeline = tiny_pipeline()
    layout = layout_of(pipeline)
    store.register_layout(layout)
    ends = (".to_q", ".to_k", "to_out.0", ".conv1", "fc2") + ((".q_proj",) if form != "kohya" else ())
    made = {
        path: af.Factors(f.spec, f.down, f.up, None, 1.5 if form == "kohya" else 1.5 * (i % 3 + 1))
        for i, (path, f) in enumerate(af.factors(layout, [p for p in layout.modules if p.endswith(ends)]).items())
    }
    tensors = af.kohya_tensors(made)
    magnitudes = {f"{stem}.dora_scale": m for stem, m in _magnitudes(tensors).items()} if decomposed else {}
    ours = publish(store, af.write(tmp_path / "a.safetensors", tensors | magnitudes), "a", "tiny")
    if form == "peft":
        export(store, "a", form, tmp_path / "out")
        _load_with_peft(pipeline, tmp_path / "out")
    else:
        (tmp_path / "out").mkdir()
        export(store, "a", form, tmp_path / "out" / "x.safetensors")
        pipeline.load_lora_weights(str(tmp_path / "out"), weight_name="x.safetensors", adapter_name="a")
    same({path: delta.double() for path, delta in peer_deltas(pipeline).items()}, ours, PEER)
    loaded = {
        f"{stem}_{name.replace('.', '_')}.dora_scale": next(iter(module.lora_magnitude_vector.values())).weight
        for stem, model in (("lora_unet", pipeline.unet), ("lora_te_text_model", pipeline.text_encoder))
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight") and len(module.lora_magnitude_vector)
    }
    assert loaded.keys() == magnitudes.keys()
    assert all(torch.equal(found.flatten(), magnitudes[name].flatten()) for name, found in loaded.items())


def _magnitudes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of outputs, by stem."""
    ups = {name.partition(".")[0]: up for name, up in tensors.items() if "lora_up" in name}
    return {stem: torch.rand(len(up), *(1,) * (up.dim() - 1)) + 0.5 for stem, up in ups.items()}


def _load_with_peft(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    from peft import PeftModel

    with warnings.catch_warnings():  # PEFT asks transformers' models for a name they no longer like
        warnings.simplefilter("ignore", FutureWarning)
        for part in ("unet", "text_encoder"):
            loaded = PeftModel.from_pretrained(getattr(pipeline, part), str(folder / part))
            setattr(pipeline, part, loaded.base_model.model)


@pytest.mark.parametrize("form", ["diffusers", "peft"])
@pytest.mark.parametrize(
    "make,why",
    [
        (kinds.lokr((16, 8), None, None), "Kronecker"),
        (kinds.KINDS["loha of high rank"], "Hadamard|dense"),
        (kinds.full, "dense"),
        (kinds.KINDS["lora with a bias"], "bias"),
        (kinds.decomposed(kinds.lora(2, 1.0), "input"), "inputs"),
    ],
    ids=["lokr", "loha", "full", "bias", "dora of inputs"],
)
def test_what_a_form_cannot_say_is_a_clear_no(
    store: Store, tmp_path: Path, form: str, make: kinds.Make, why: str
) -> None:
    path = "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
    sample = make(af.TOY_SD1.modules[path].shape, torch.Generator().manual_seed(0))
    publish(store, af.write(tmp_path / "a.safetensors", kinds.stem_tensors(path, sample)), "a")
    with pytest.raises(Inexpressible, match=why) as refused:
        export(store, "a", form, tmp_path / "out")
    assert refused.value.module == path
    assert not (tmp_path / "out").exists()


def test_magnitudes_are_for_all_modules_of_a_model_or_none(store: Store, tmp_path: Path) -> None:
    shapes, generator = af.TOY_SD1.modules, torch.Generator().manual_seed(0)
    made = {
        LINEAR: kinds.decomposed(kinds.lora(2, 1.0), "output")(shapes[LINEAR].shape, generator),
        CONV: kinds.lora(2, 1.0)(shapes[CONV].shape, generator),
    }
    tensors = {name: t for path, each in made.items() for name, t in kinds.stem_tensors(path, each).items()}
    publish(store, af.write(tmp_path / "a.safetensors", tensors), "a")
    with pytest.raises(Inexpressible, match="use_dora") as refused:
        export(store, "a", "peft", tmp_path / "out")
    assert refused.value.module == CONV


def test_the_same_bytes_each_time_and_nothing_replaced(store: Store, tmp_path: Path) -> None:
    publish(store, af.write(tmp_path / "a.safetensors", af.kohya_tensors(af.factors(af.TOY_SD1, [LINEAR, CONV]))), "a")
    for form in ("kohya", "diffusers"):
        first, second = (export(store, "a", form, tmp_path / f"{form}{i}")[0].read_bytes() for i in (1, 2))
        assert first == second
        assert safetensors.torch.load(first).keys()
        header = json.loads(first[8 : 8 + int.from_bytes(first[:8], "little")])
        assert header["__metadata__"]["loramux.source"].startswith("a@1 ")
        with pytest.raises(FileExistsError, match="nothing is replaced"):
            export(store, "a", form, tmp_path / f"{form}1")
    export(store, "a", "peft", tmp_path / "folder")
    with pytest.raises(FileExistsError, match="nothing is replaced"):
        export(store, "a", "peft", tmp_path / "folder")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_a_full_disk_leaves_nothing(store: Store, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store, af.write(tmp_path / "a.safetensors", af.kohya_tensors(af.factors(af.TOY_SD1, [LINEAR]))), "a")

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    before = sorted(tmp_path.iterdir())
    store.compiled(store.resolve("a"))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        export(store, "a", form, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_system_without_links_will_do(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store, af.write(tmp_path / "a.safetensors", af.kohya_tensors(af.factors(af.TOY_SD1, [LINEAR]))), "a")

    def none(_source: Path, _target: Path) -> None:
        raise PermissionError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", none)
    (out,) = export(store, "a", "kohya", tmp_path / "out")
    assert len(safetensors.torch.load_file(out)) == 3 and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_embeddings_leave_too(store: Store, tmp_path: Path, form: str) -> None:
    one = torch.randn(2, 24)
    two = {"clip_l": torch.randn(3, 24), "clip_g": torch.randn(3, 40)}
    store.publish(af.write(tmp_path / "a", {"<cat>": one}), UploadSpec("one", layout="toy_sd1"))
    store.publish(af.write(tmp_path / "b", two), UploadSpec("two", layout="toy_sdxl"))
    (file,) = export(store, "one", form, tmp_path / "one.safetensors")
    (pair,) = export(store, "two", form, tmp_path / "two.safetensors")
    ((name, back),) = safetensors.torch.load_file(file).items()
    assert name == {"kohya": "emb_params", "diffusers": "<cat>"}[form]
    assert torch.equal(back, one)
    assert {name: tensor.tolist() for name, tensor in safetensors.torch.load_file(pair).items()} == {
        name: tensor.tolist() for name, tensor in two.items()
    }
    with pytest.raises(Inexpressible, match="no textual inversions"):
        export(store, "one", "peft", tmp_path / "no")
