"""LoHa, LoKr, full differences, biases, normalisations, DoRA: compiled exactly, as rank rows where those are cheap."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import adapter_files as af
import adapter_kinds as kinds
import pytest
import torch
from torch import Tensor

from loramux_store import InterpretOptions, Layout, ModuleSpec, Published, Store, UploadSpec
from loramux_store.formats.operation import operation_of
from loramux_store.formats.read import RawModule
from loramux_store.header import TensorEntry

# Factors are made in float64 and rounded to float32 once: half an ulp, 6e-8, for each of a few factors.
ROUNDED = 6e-7
BLOCK = "unet.down_blocks.1.attentions.0.transformer_blocks.0"
LINEAR, CONV = f"{BLOCK}.attn2.to_k", "unet.down_blocks.1.resnets.0.conv2"
SORTS = (".attn1.to_q", ".attn2.to_k", ".attn2.to_v", ".conv1", ".conv2", "proj_in", "proj_out", ".fc1", ".v_proj")


def publish(
    store: Store,
    folder: Path,
    tensors: Mapping[str, Tensor],
    options: InterpretOptions | None = None,
    metadata: Mapping[str, str] | None = None,
    layout: str | None = "toy_sd1",
) -> Published:
    file = af.write(folder / "a.safetensors", tensors, metadata)
    return store.publish(file, UploadSpec("a", layout=layout, options=options or InterpretOptions()))


def compiled(store: Store, published: Published) -> tuple[dict, dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    assert published.version is not None
    path = store.compiled(published.version)
    layout = store.layout(published.version.layout_digest)
    return *af.compiled_parts(path), af.compiled_delta(path, layout)


def same(got: Tensor, wanted: Tensor) -> bool:
    return bool((got - wanted).norm() <= ROUNDED * wanted.norm()) and bool(wanted.norm() > 0)


def samples(made: Mapping[str, kinds.Make], layout: Layout = af.TOY_SD1) -> dict[str, kinds.Sample]:
    """By module path."""
    generator = torch.Generator().manual_seed(1)
    return {path: make(layout.modules[path].shape, generator) for path, make in made.items()}


def stored(made: Mapping[str, kinds.Sample]) -> dict[str, Tensor]:
    return {name: tensor for path, each in made.items() for name, tensor in kinds.stem_tensors(path, each).items()}


def codes(published: Published) -> list[str]:
    return [warning.split(":")[0] for warning in published.report.warnings]


def test_every_kind_on_every_sort_of_layer_in_one_file(store: Store, tmp_path: Path) -> None:
    layout = af.TOY_SD1
    chosen: dict[str, kinds.Make] = {}
    seen: set[tuple[str, str]] = set()
    for sort in SORTS:
        free = [path for path in layout.modules if path.endswith(sort) and path not in chosen]
        for (kind, make), path in zip(kinds.KINDS.items(), free, strict=False):
            chosen[path] = make
            seen.add((kind, layout.modules[path].kind))
    for kind in ("linear", "conv2d"):  # what zip has cut off
        free = (path for path, spec in layout.modules.items() if spec.kind == kind and path not in chosen)
        for name in kinds.KINDS.keys() - {name for name, of in seen if of == kind}:
            chosen[next(path for path in free if layout.modules[path].shape[1] % 8 == 0)] = kinds.KINDS[name]
    made = samples(chosen)
    published = publish(store, tmp_path, stored(made))
    _, parts, deltas = compiled(store, published)
    assert set(deltas) == set(made) and published.report.ignored == ()
    for path, each in made.items():
        assert same(deltas[path], each.delta), path
        assert ("bias" in parts[path]) == (each.bias is not None)
        assert each.bias is None or same(parts[path]["bias"], each.bias)
    operations = {module.operation for module in published.report.matched}
    assert operations >= {"rows", "rows+bias", "kronecker", "dense", "dense+bias"}


def entry(*shape: int) -> TensorEntry:
    return TensorEntry("x", "F16", shape, 0, 0)


def lokr(factor: int, shape: tuple[int, ...], rank: int | None) -> dict[str, TensorEntry]:
    o, i, *kernel = shape
    whole = {"lokr_w2": entry(o // factor, i // factor, *kernel)}
    low = {"lokr_w2_a": entry(o // factor, rank or 1), "lokr_w2_b": entry(rank or 1, i // factor)}
    return {"lokr_w1": entry(factor, factor)} | (low if rank else whole)


def loha(rank: int, shape: tuple[int, ...]) -> dict[str, TensorEntry]:
    o, i = shape
    sides = {f"hada_w{side}_a": entry(o, rank) for side in "12"} | {f"hada_w{side}_b": entry(rank, i) for side in "12"}
    return sides


WIDE, NARROW = (1280, 1280), (320, 320)


@pytest.mark.parametrize(
    "kind,tensors,shape,name,rank,values",
    [
        ("lokr", lokr(8, WIDE, None), WIDE, "kronecker", 0, 64 + 160 * 160),
        ("lokr", lokr(16, (1280, 640, 3, 3), None), (1280, 640, 3, 3), "kronecker", 0, 256 + 80 * 40 * 9),
        ("lokr", lokr(8, WIDE, 4), WIDE, "rows", 32, 0),
        ("lokr", lokr(8, NARROW, 36), NARROW, "kronecker", 0, 64 + 40 * 40),
        ("lokr", lokr(16, WIDE, 32), WIDE, "kronecker", 0, 256 + 80 * 80),
        ("loha", loha(8, WIDE), WIDE, "rows", 64, 0),
        ("loha", loha(9, WIDE), WIDE, "hadamard", 0, 4 * 9 * 1280),
        ("loha", loha(8, NARROW), NARROW, "rows", 64, 0),
        ("loha", loha(16, NARROW), NARROW, "hadamard", 0, 4 * 16 * 320),
        ("loha", loha(32, WIDE), WIDE, "hadamard", 0, 4 * 32 * 1280),
        ("loha", loha(96, NARROW), NARROW, "dense", 0, 320 * 320),
        ("lora", {"down": entry(512, 320), "up": entry(320, 512)}, NARROW, "rows", 512, 0),
        ("lora", {"down": entry(513, 320), "up": entry(320, 513)}, NARROW, "dense", 0, 320 * 320),
        ("full", {"diff": entry(*NARROW)}, NARROW, "dense", 0, 320 * 320),
    ],
)
def test_rank_rows_where_they_are_cheap(
    kind: str, tensors: dict[str, TensorEntry], shape: tuple[int, ...], name: str, rank: int, values: int
) -> None:
    """At the widths of real models: fewer numbers than the dense delta, and no more rows than a large LoRA has."""
    spec = ModuleSpec("linear" if len(shape) == 2 else "conv2d", shape)
    made = operation_of(RawModule("x", "lycoris", kind, tensors), spec, "")
    assert (made.name, made.rank, made.side_values) == (name, rank, values)


def test_scales_of_whole_lokr(store: Store, tmp_path: Path) -> None:
    """Two whole sides: LyCORIS' alpha means nothing, be it infinite; A12 is warned of; a PEFT config is followed."""
    made = samples({LINEAR: kinds.lokr((2, 4), None, None)})
    tensors = stored(made)
    stem = next(iter(tensors)).partition(".")[0]

    def scale(alpha: float | None, **more: object) -> tuple[float, list[str]]:
        said = {} if alpha is None else {f"{stem}.alpha": torch.tensor(alpha).half()}
        published = publish(store, tmp_path, {**tensors, **said}, **more)  # type: ignore[arg-type]
        return published.report.matched[0].scale, codes(published)

    assert scale(1e10) == (1.0, [])
    assert scale(1.0, metadata={"ss_network_dim": "32"}) == (1.0, ["lokr_scale_ambiguous"])
    assert scale(32.0, metadata={"ss_network_dim": "32"}) == (1.0, [])
    assert scale(None) == (1.0, [])
    config = InterpretOptions(peft_config='{"peft_type": "LOKR", "r": 8, "alpha": 4}')
    assert scale(None, options=config) == (0.5, [])
    assert scale(1.0, options=config, metadata={"ss_network_dim": "32"}) == (0.5, [])
    thirtysecond = InterpretOptions(alpha=1 / 32)
    assert scale(1.0, options=thirtysecond, metadata={"ss_network_dim": "32"}) == (1 / 32, [])
    assert scale(None, options=thirtysecond) == (1 / 32, [])
    assert scale(1.0, options=replace(config, alpha=2.0)) == (0.5, ["alpha_unused"])


def test_alpha_of_low_rank_kinds(store: Store, tmp_path: Path) -> None:
    """N18: of PEFT's LoHa the JSON alone says alpha; without it, it is the rank, with a warning."""
    made = samples({LINEAR: kinds.loha(2, None)})
    tensors = {f"base_model.model.{LINEAR[5:]}.{leaf}": tensor for leaf, tensor in made[LINEAR].leaves.items()}
    config = InterpretOptions(peft_config='{"peft_type": "LOHA", "r": 2, "alpha": 1}')
    told = publish(store, tmp_path, tensors, config)
    assert (told.report.matched[0].scale, codes(told)) == (0.5, [])
    assert same(compiled(store, told)[2][LINEAR], made[LINEAR].delta / 2)
    untold = publish(store, tmp_path, tensors)
    assert (untold.report.matched[0].scale, codes(untold)) == (1.0, ["alpha_assumed"])


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["omi", "simpletuner", "peft"])
def test_names_of_other_trainers(store: Store, tmp_path: Path, names: str) -> None:
    """OneTrainer writes OMI: sgm names with dots, clip_l and clip_g; SimpleTuner writes lycoris_ and no encoder."""
    layout = af.TOY_SDXL
    paths = [LINEAR, "unet.conv_in", "unet.up_blocks.1.upsamplers.0.conv", "unet.mid_block.resnets.1.time_emb_proj"]
    if names != "simpletuner":
        paths += [TEXT, TEXT.replace("text_encoder", "text_encoder_2"), "text_encoder_2.text_projection"]
    made = samples(dict.fromkeys(paths, kinds.loha(1, 0.5)), layout)
    tensors = {f"{_stem(path, names)}.{leaf}": t for path, each in made.items() for leaf, t in each.leaves.items()}
    published = publish(store, tmp_path, tensors, layout="toy_sdxl")
    deltas = compiled(store, published)[2]
    assert set(deltas) == set(paths)
    assert all(same(deltas[path], each.delta) for path, each in made.items())


TEXT = "text_encoder.text_model.encoder.layers.1.mlp.fc1"


def _stem(path: str, names: str) -> str:
    component, _, tail = path.partition(".")
    if names == "peft":
        return path
    if names == "simpletuner":
        return f"lycoris_{tail.replace('.', '_')}"
    prefix = {"unet": "unet", "text_encoder": "clip_l", "text_encoder_2": "clip_g"}[component]
    return f"{prefix}.{af.sgm_name(tail) if component == 'unet' else tail}"


# -- normalisations -------------------------------------------------------------------------------


def test_normalisations_by_both_kinds_of_names(store: Store, tmp_path: Path) -> None:
    norms = {
        "lora_unet_down_blocks_1_resnets_0_norm1": "unet.down_blocks.1.resnets.0.norm1",
        "lora_unet_output_blocks_3_0_out_layers_0": "unet.up_blocks.1.resnets.0.norm2",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_norm3": (
            "unet.mid_block.attentions.0.transformer_blocks.0.norm3"
        ),
        "lora_unet_out_0": "unet.conv_norm_out",
        "lora_te_text_model_encoder_layers_1_layer_norm2": "text_encoder.text_model.encoder.layers.1.layer_norm2",
        "lora_te_text_model_final_layer_norm": "text_encoder.text_model.final_layer_norm",
    }
    tensors: dict[str, Tensor] = {}
    for at, (stem, path) in enumerate(norms.items()):
        weight, bias = ("diff", "diff_b") if at == 0 else ("w_norm", "b_norm")
        width = af.TOY_SD1.targets[path].shape[0]
        tensors |= {f"{stem}.{weight}": torch.randn(width), f"{stem}.{bias}": torch.randn(width)}
    published = publish(store, tmp_path, tensors)
    _, parts, _ = compiled(store, published)
    assert set(parts) == set(norms.values())
    for stem, path in norms.items():
        weight, bias = (t for name, t in tensors.items() if name.startswith(f"{stem}."))
        assert torch.equal(parts[path]["weight"], weight.double()) and torch.equal(parts[path]["bias"], bias.double())
    assert {(m.kind, m.operation, m.rank) for m in published.report.matched} == {("norm", "norm", 0)}


# -- DoRA -----------------------------------------------------------------------------------------
