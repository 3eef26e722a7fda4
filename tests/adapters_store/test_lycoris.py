"""Files as LyCORIS itself writes them, and what its own layers compute: the same delta, from the same file.

The oracle is a layer with LyCORIS' module applied, whose weight is what it makes of unit inputs, as in training. Where
LyCORIS 4.1.3 contradicts itself, its way and ours are held against float64 algebra, and the test says who is right.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import adapter_files as af
import adapter_kinds as kinds
import pytest
import torch
from lycoris.functional.general import weight_decompose
from lycoris.functional.lokr import diff_weight as lokr_diff_weight
from lycoris.modules import get_module, make_module
from lycoris.modules.full import FullModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from torch import Tensor, nn

from loramux_store import Published, Store, UploadSpec

LINEAR = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
SQUARE = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.down_blocks.1.resnets.0.conv2"
# Theirs is the difference of two float32 layers, of weights that are of the size of their delta.
PEER = 3e-6
ALGEBRA = 6e-7

Made = Callable[[str, nn.Module], nn.Module]


def made(kind: Any, **said: Any) -> Made:
    return lambda name, layer: kind(name, layer, 1.0, **said)


LOCON, LOHA, LOKR = ({"lora_dim": 2, "alpha": 3.0}, {"lora_dim": 2, "alpha": 0.5}, {"lora_dim": 1, "alpha": 0.5})
WHOLE = {"lora_dim": 10000, "alpha": 1.0, "factor": 4, "full_matrix": True}
KINDS: dict[str, tuple[Made, tuple[str, ...]]] = {
    "LoCon": (made(LoConModule, **LOCON), (LINEAR, CONV)),
    "LoCon, rsLoRA": (made(LoConModule, **LOCON, rs_lora=True), (LINEAR,)),
    "LoCon of a core": (made(LoConModule, **LOCON, use_tucker=True), (CONV,)),
    "LoHa": (made(LohaModule, **LOHA), (LINEAR, CONV)),
    "LoHa, rsLoRA": (made(LohaModule, **LOHA, rs_lora=True), (LINEAR,)),
    "LoHa of cores": (made(LohaModule, **LOHA, use_tucker=True), (CONV,)),
    "LoKr, second factor whole": (made(LokrModule, **WHOLE), (LINEAR, SQUARE, CONV)),
    "LoKr, second factor low-rank": (made(LokrModule, **LOKR, factor=4), (LINEAR, CONV)),
    "LoKr, rsLoRA": (made(LokrModule, lora_dim=2, alpha=0.5, factor=2, rs_lora=True), (LINEAR,)),
    "LoKr, both low-rank": (made(LokrModule, **LOKR, factor=4, decompose_both=True), (LINEAR, CONV)),
    "LoKr of a core": (made(LokrModule, **LOKR, factor=4, use_tucker=True), (CONV,)),
    "LoKr, unbalanced": (made(LokrModule, **LOKR, factor=2, unbalanced_factorization=True), (LINEAR, CONV)),
    "full": (made(FullModule), (LINEAR, CONV)),
    "DoRA of outputs": (made(LoConModule, **LOCON, weight_decompose=True, wd_on_out=True), (LINEAR, SQUARE, CONV)),
    "DoRA of inputs": (made(LoConModule, **LOCON, weight_decompose=True, wd_on_out=False), (LINEAR, SQUARE, CONV)),
    "DoRA over LoHa": (made(LohaModule, lora_dim=2, alpha=2.0, weight_decompose=True), (LINEAR, CONV)),
    "DoRA over LoKr": (made(LokrModule, **WHOLE, weight_decompose=True, wd_on_out=False), (LINEAR, CONV)),
}


def layer_of(path: str) -> nn.Module:
    torch.manual_seed(1)
    out, source, *kernel = af.TOY_SD1.modules[path].shape
    return nn.Conv2d(source, out, 3, padding=1) if kernel else nn.Linear(source, out)


@torch.no_grad()
def weight_of(layer: Any, path: str) -> Tensor:
    """The weight that a layer's answers to unit inputs show, float64."""
    source, *kernel = af.TOY_SD1.modules[path].shape[1:]
    if not kernel:
        return (layer(torch.eye(source)) - layer(torch.zeros(1, source))).T.double()
    units = torch.zeros(source, source, 3, 3)
    units[range(source), range(source), 1, 1] = 1
    return (layer(units) - layer(torch.zeros(1, source, 3, 3))).transpose(0, 1).flip(2, 3).double()


@torch.no_grad()
def drawn(module: nn.Module) -> nn.Module:
    """With random numbers in every parameter, in magnitudes some that are near what they were."""
    torch.manual_seed(2)
    for name, parameter in module.named_parameters():
        near = parameter * (torch.rand_like(parameter) + 0.5)
        parameter.copy_(near if "dora" in name else torch.randn_like(parameter) / 2)
    return module


def publish(store: Store, folder: Path, path: str, leaves: Mapping[str, Tensor], **more: Any) -> Published:
    stem = f"lora_unet_{path[5:].replace('.', '_')}"
    tensors = {f"{stem}.{leaf}": tensor.detach() for leaf, tensor in leaves.items()}
    return store.publish(af.write(folder / "a.safetensors", tensors, **more), UploadSpec("a", layout="toy_sd1"))


def sample_of(store: Store, published: Published, path: str) -> kinds.Sample:
    """What we make of a file, as a delta and magnitudes."""
    assert published.version is not None
    file = store.compiled(published.version)
    table, parts = af.compiled_parts(file)
    delta = af.compiled_delta(file, af.TOY_SD1)[path]
    return kinds.Sample({}, delta, parts[path].get("bias"), table[path]["axis"], parts[path].get("m"))


def off(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize(
    ("kind", "path"), [(kind, path) for kind, (_, paths) in KINDS.items() for path in paths], ids=lambda v: v[-20:]
)
def test_the_same_delta_as_a_layer_of_lycoris(store: Store, tmp_path: Path, kind: str, path: str) -> None:
    layer = layer_of(path)
    before = weight_of(layer, path)
    module: Any = drawn(KINDS[kind][0]("x", layer))
    module.apply_to()  # a full difference is one only from here on
    published = publish(store, tmp_path, path, module.custom_state_dict())
    ours = kinds.change(sample_of(store, published, path), before)
    theirs = weight_of(layer, path) - before
    assert theirs.norm() > 0.1 * before.norm(), "it does nothing"
    assert off(ours, theirs) < PEER


def test_the_same_bias_and_normalisation(store: Store, tmp_path: Path) -> None:
    module: Any = drawn(FullModule("x", layer_of(LINEAR), 1.0))
    module.apply_to()
    ours = sample_of(store, publish(store, tmp_path, LINEAR, module.custom_state_dict()), LINEAR)
    assert ours.bias is not None and off(ours.bias, module.bias.detach() - module.org_bias[0]) < ALGEBRA

    norm = nn.GroupNorm(4, 8)
    module = drawn(NormModule("x", norm))
    leaves = {leaf: tensor.detach().clone() for leaf, tensor in module.state_dict().items() if leaf.endswith("_norm")}
    assert leaves.keys() == {"w_norm", "b_norm"}
    version = publish(store, tmp_path, "unet.conv_norm_out", leaves).version
    assert version is not None
    _, parts = af.compiled_parts(store.compiled(version))
    x = torch.randn(2, 8, 3, 3)
    found = parts["unet.conv_norm_out"]
    moved = torch.nn.functional.group_norm(
        x, 4, norm.weight + found["weight"].float(), norm.bias + found["bias"].float(), norm.eps
    )
    module.apply_to()
    assert off(moved, norm(x)) < PEER and off(moved, module.org_forward(x)) > 0.1


# -- where LyCORIS contradicts itself -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["LoHa", "LoKr, second factor low-rank"])
def test_its_get_diff_weight_scales_twice(store: Store, tmp_path: Path, kind: str) -> None:
    """Its layers, which scale once, are right, and we with them."""
    layer = layer_of(LINEAR)
    module: Any = drawn(KINDS[kind][0]("x", layer))
    ours = sample_of(store, publish(store, tmp_path, LINEAR, module.custom_state_dict()), LINEAR).delta
    scale = module.alpha.item() / module.lora_dim
    assert scale not in (0.0, 1.0)
    with torch.no_grad():
        assert off(module.get_weight(ours.shape).double(), ours) < PEER
        assert off(module.get_diff_weight(shape=ours.shape)[0].double(), scale * ours) < PEER


def test_its_function_takes_the_rank_of_a_core_for_another(store: Store, tmp_path: Path) -> None:
    """With a core the outer factor lies transposed: its second axis is b, 4 here, not the rank, 2."""
    sample = kinds.lokr((4, 4), None, 2, 1.0, tucker=True)((16, 16, 3, 3), torch.Generator().manual_seed(1))
    ours = sample_of(store, publish(store, tmp_path, CONV, sample.leaves), CONV).delta
    assert off(ours, sample.delta) < ALGEBRA
    leaves = {name.removeprefix("lokr_"): tensor for name, tensor in sample.leaves.items()}
    factors = (leaves.get(name) for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2"))
    theirs = lokr_diff_weight(*factors, gamma=1.0).reshape(ours.shape).double()
    assert off(theirs, ours / 2) < PEER


def test_it_trains_whole_factors_with_rslora_at_a_scale_that_no_loader_has(store: Store, tmp_path: Path) -> None:
    """Its layer trains at sqrt(dim), its loader takes 1, like every other. The file cannot tell: 1 and a warning."""
    layer = layer_of(LINEAR)
    before = weight_of(layer, LINEAR)
    module: Any = drawn(LokrModule("x", layer, 1.0, **{**WHOLE, "lora_dim": 16}, rs_lora=True))
    assert module.alpha.item() == 16 * math.sqrt(16)
    published = publish(store, tmp_path, LINEAR, module.custom_state_dict(), metadata={"ss_network_dim": "16"})
    ours = sample_of(store, published, LINEAR).delta
    module.apply_to()
    assert off(weight_of(layer, LINEAR) - before, 4 * ours) < PEER
    assert published.report.warnings[0].startswith("lokr_scale_ambiguous")


def test_its_loader_takes_no_magnitudes_of_inputs(store: Store, tmp_path: Path) -> None:
    """It makes those of outputs and cannot copy the others there; its formula for them is ours."""
    sample = kinds.decomposed(kinds.lora(2, 1.0), "input")((16, 24), torch.Generator().manual_seed(1))
    layer: Any = layer_of(LINEAR)
    kind, leaves = get_module({f"x.{leaf}": tensor for leaf, tensor in sample.leaves.items()}, "x")
    with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
        make_module(kind, leaves, "x", layer)
    ours = sample_of(store, publish(store, tmp_path, LINEAR, sample.leaves), LINEAR)
    before = weight_of(layer, LINEAR)
    theirs = weight_decompose(before + sample.delta, sample.leaves["dora_scale"].double(), 1.0, False) - before
    assert off(kinds.change(ours, before), theirs) < PEER
