"""Merged files against float64 algebra, and against PEFT's own add_weighted_adapter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import adapter_files as af
import adapter_kinds as kinds
import pytest
import torch
from test_export import publish, same
from torch import Tensor, nn

from loramux_store import Layout, ModuleSpec, Store, UploadSpec
from loramux_store.errors import Inexpressible, InvalidArgument
from loramux_store.forms.export import FORMS
from loramux_store.merging.entries import METHODS, Entry, Method, parse_entry
from loramux_store.merging.merge import merge

BLOCK = "unet.down_blocks.1.attentions.0.transformer_blocks.0"
LINEAR, CONV = f"{BLOCK}.attn2.to_k", "unet.down_blocks.1.resnets.0.conv2"
FF = "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
ALONE = f"{BLOCK}.attn1.to_q"
PEER = 1e-5  # PEFT works in float32


def put(store: Store, folder: Path, name: str, tensors: Mapping[str, Tensor], layout: str = "toy_sd1") -> None:
    publish(store, af.write(folder / "in.safetensors", tensors), name, layout)


def blend(layout: Layout, **entries: tuple[Mapping[str, Tensor], float]) -> dict[str, Tensor]:
    """sum_i w_i delta_i in float64."""
    total: dict[str, Tensor] = {}
    for deltas, weight in entries.values():
        for path, delta in deltas.items():
            total[path] = total.get(path, torch.zeros(layout.modules[path].shape, dtype=torch.float64)) + weight * delta
    return total


@pytest.mark.parametrize("form", FORMS)
def test_concatenation_is_the_blend(store: Store, tmp_path: Path, form: str) -> None:
    """Other ranks, other alphas, other modules, a weight below zero."""
    layout = af.TOY_SD1
    a = af.factors(layout, [LINEAR, CONV], seed=1, rank=3, alpha=2.0)
    b = af.factors(layout, [LINEAR, CONV, FF], seed=2, rank=5, alpha=7.0)
    put(store, tmp_path, "a", af.kohya_tensors(a))
    put(store, tmp_path, "b", af.kohya_tensors(b))
    out = tmp_path / "out"
    merge(store, [Entry("a", 0.8), Entry("b@1", -0.35)], Method(), form, out)
    config = (out / "unet" / "adapter_config.json").read_text() if form == "peft" else None
    file = out / "unet" / "adapter_model.safetensors" if form == "peft" else out
    dense = [{path: af.dense(module) for path, module in made.items()} for made in (a, b)]
    same(publish(store, file, "c", config=config), blend(layout, a=(dense[0], 0.8), b=(dense[1], -0.35)))
    assert store.resolve("c").ranks == {LINEAR: 8, CONV: 8, FF: 5}


def test_other_deltas_become_dense_and_stay_exact(store: Store, tmp_path: Path) -> None:
    """A Kronecker product beside rank rows; biases and normalisations add up; what stands alone keeps its form."""
    shape, generator = af.TOY_SD1.modules[FF].shape, torch.Generator().manual_seed(5)
    row, kron, bias = (
        make(shape, generator)
        for make in (kinds.lora(2, 1.0), kinds.lokr((16, 8), None, None), kinds.lora(2, 3.0, bias=True))
    )
    alone = kinds.lokr((2, 4), None, None)(af.TOY_SD1.modules[CONV].shape, generator)
    put(store, tmp_path, "a", kinds.stem_tensors(FF, row) | {"lora_unet_conv_norm_out.w_norm": torch.full((8,), 2.0)})
    put(store, tmp_path, "b", kinds.stem_tensors(FF, kron) | kinds.stem_tensors(CONV, alone))
    put(store, tmp_path, "c", kinds.stem_tensors(FF, bias) | {"lora_unet_conv_norm_out.w_norm": torch.full((8,), 0.5)})
    entries = [Entry("a", 0.5), Entry("b", 2.0), Entry("c", -1.0)]
    (out,) = merge(store, entries, Method(), "kohya", tmp_path / "out")
    wanted = {FF: 0.5 * row.delta + 2 * kron.delta - bias.delta, CONV: 2 * alone.delta}
    same(publish(store, out, "d"), wanted)
    _, parts = af.compiled_parts(store.compiled(store.resolve("d")))
    assert bias.bias is not None and torch.equal(parts[FF]["bias"], -bias.bias)
    assert torch.equal(parts["unet.conv_norm_out"]["weight"], torch.full((8,), 0.5).double())
    with pytest.raises(Inexpressible, match="normalisation"):
        merge(store, entries, Method(), "peft", tmp_path / "folder")


def test_magnitudes_only_alone_and_whole(store: Store, tmp_path: Path) -> None:
    dora = kinds.decomposed(kinds.lora(2, 1.0), "output")(
        af.TOY_SD1.modules[LINEAR].shape, torch.Generator().manual_seed(0)
    )
    put(store, tmp_path, "a", kinds.stem_tensors(LINEAR, dora))
    put(store, tmp_path, "b", af.kohya_tensors(af.factors(af.TOY_SD1, [CONV])))
    (out,) = merge(store, [Entry("a", 1.0), Entry("b", 0.5)], Method(), "kohya", tmp_path / "out")
    publish(store, out, "c")
    _, parts = af.compiled_parts(store.compiled(store.resolve("c")))
    assert torch.equal(parts[LINEAR]["m"], dora.magnitude)
    for entries in ([Entry("a", 0.5)], [Entry("a", 1.0), Entry("a", 1.0)]):
        with pytest.raises(Inexpressible, match="magnitudes") as refused:
            merge(store, entries, Method(), "kohya", tmp_path / "no")
        assert refused.value.module == LINEAR
        assert not (tmp_path / "no").exists()


def test_singular_values_give_the_nearest_delta(store: Store, tmp_path: Path) -> None:
    """Eckart and Young: what is missing is exactly the norm of the smaller singular values. Also of a dense delta."""
    made = [af.factors(af.TOY_SD1, [LINEAR, CONV], seed=seed, rank=4, alpha=2.0) for seed in (1, 2)]
    made[1] |= af.factors(af.TOY_SD1, [ALONE], seed=3, rank=4, alpha=2.0)
    full = kinds.full(af.TOY_SD1.modules[FF].shape, torch.Generator().manual_seed(0))
    put(store, tmp_path, "a", af.kohya_tensors(made[0]))
    put(store, tmp_path, "b", af.kohya_tensors(made[1]) | kinds.stem_tensors(FF, full))
    (out,) = merge(store, [Entry("a", 1.0), Entry("b", -0.5)], Method("svd", rank=3), "kohya", tmp_path / "out")
    got = publish(store, out, "c")
    whole = {p: af.dense(made[0][p]) - 0.5 * af.dense(made[1][p]) for p in (LINEAR, CONV)} | {
        FF: -0.5 * full.delta,
        ALONE: -0.5 * af.dense(made[1][ALONE]),
    }
    assert store.resolve("c").ranks == dict.fromkeys(whole, 3)
    for path, delta in whole.items():
        missing = torch.linalg.svdvals(delta.flatten(1))[3:].norm()
        assert missing > 0.05 * delta.norm()
        assert abs((delta - got[path]).norm() - missing) < 1e-6 * delta.norm()


class _Toy(nn.Module):
    """Its modules are named in the order of the alphabet, in which a merge goes through them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3)
        self.lin = nn.Linear(10, 7)


TOY = Layout("peft_toy", {"unet.conv": ModuleSpec("conv2d", (6, 4, 3, 3)), "unet.lin": ModuleSpec("linear", (7, 10))})


def _by_peft(
    made: Mapping[str, Mapping[str, af.Factors]], weights: Mapping[str, float], method: Method
) -> dict[str, Tensor]:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=3, lora_alpha=2, target_modules=["conv", "lin"])
    model = get_peft_model(_Toy(), config, adapter_name="ink")
    model.add_adapter("moss", config)
    layers: dict[str, Any] = {"unet.conv": model.base_model.model.conv, "unet.lin": model.base_model.model.lin}
    for name, factors in made.items():
        for path, module in factors.items():
            layers[path].lora_A[name].weight.data = module.down
            layers[path].lora_B[name].weight.data = module.up
    inject = model.base_model.inject_adapter

    def seeded(*args: object, **kwargs: object) -> None:  # it draws numbers of its own for the new layers
        inject(*args, **kwargs)
        torch.manual_seed(method.seed)

    model.base_model.inject_adapter = seeded
    options = {"svd_rank": method.rank, "density": method.density, "majority_sign_method": method.sign}
    given = {name: value for name, value in options.items() if value is not None}
    model.add_weighted_adapter([*weights], [*weights.values()], "both", method.name, **given)
    return {path: layer.get_delta_weight("both").detach().double() for path, layer in layers.items()}


@pytest.mark.parametrize(
    "method",
    [
        Method("linear"),
        Method("svd", rank=2),
        Method("ties", density=0.4),
        Method("ties", density=0.4, sign="frequency"),
        Method("dare_ties", density=0.6, seed=7),
        Method("dare_linear", density=0.6, seed=7),
        Method("magnitude_prune", density=0.4),
    ],
    ids=lambda method: f"{method.name} {method.sign}",
)
def test_pefts_own_methods_give_what_peft_gives(store: Store, tmp_path: Path, method: Method) -> None:
    store.register_layout(TOY)
    made = {name: af.factors(TOY, seed=seed, rank=3, alpha=2.0) for seed, name in enumerate(("ink", "moss"))}
    weights = {"ink": 0.9, "moss": -0.4}
    for name, factors in made.items():
        put(store, tmp_path, name, af.kohya_tensors(factors), "peft_toy")
    before = torch.get_rng_state()
    (out,) = merge(store, [Entry(n, w) for n, w in weights.items()], method, "kohya", tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), before)
    got = publish(store, out, "c", "peft_toy")
    same(got, _by_peft(made, weights, method), PEER)
    exact = {p: sum(w * af.dense(made[name][p]) for name, w in weights.items()) for p in got}
    assert all((got[path] - delta).norm() > 1e-2 * delta.norm() for path, delta in exact.items())


def test_the_same_seed_gives_the_same_bytes(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "a", af.kohya_tensors(af.factors(af.TOY_SD1, [LINEAR, CONV], rank=4)))

    def run(seed: int, at: int) -> bytes:
        method = Method("dare_linear", density=0.5, seed=seed)
        return merge(store, [Entry("a", 1.0)], method, "kohya", tmp_path / f"{seed}-{at}")[0].read_bytes()

    assert run(1, 0) == run(1, 1)
    assert run(1, 2) != run(2, 0)


def test_what_cannot_be_merged_is_refused(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "a", af.kohya_tensors(af.factors(af.TOY_SD1, [LINEAR], rank=2)))
    put(store, tmp_path, "b", af.kohya_tensors(af.factors(af.TOY_SD1, [LINEAR], rank=3)))
    put(store, tmp_path, "c", af.kohya_tensors(af.factors(af.TOY_SDXL, ["unet.conv_in"])), "toy_sdxl")
    full = kinds.full(af.TOY_SD1.modules[LINEAR].shape, torch.Generator().manual_seed(0))
    put(store, tmp_path, "d", kinds.stem_tensors(LINEAR, full))
    store.publish(af.write(tmp_path / "e", {"<cat>": torch.randn(2, 24)}), UploadSpec("e", layout="toy_sd1"))
    out = tmp_path / "out"
    with pytest.raises(InvalidArgument, match="toy_sdxl', expected the layout of a, toy_sd1"):
        merge(store, [Entry("a", 1), Entry("c", 1)], Method(), "kohya", out)
    with pytest.raises(Inexpressible, match="embedding"):
        merge(store, [Entry("a", 1), Entry("e", 1)], Method(), "kohya", out)
    with pytest.raises(Inexpressible, match=r"one rank, here are \[2, 3\]"):
        merge(store, [Entry("a", 1), Entry("b", 1)], Method("linear"), "kohya", out)
    with pytest.raises(Inexpressible, match="rank rows only"):
        merge(store, [Entry("d", 1)], Method("linear"), "kohya", out)
    with pytest.raises(InvalidArgument, match="at least one"):
        merge(store, [], Method(), "kohya", out)
    assert not out.exists()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_what_it_needs_and_no_more(name: str) -> None:
    pruning = name in ("ties", "dare_ties", "dare_linear", "magnitude_prune")
    needed = {"rank": 4} if name == "svd" else {"density": 0.5} if pruning else {}
    assert Method(name, **needed).name == name
    wrong = [{"rank": 4}, {"density": 0.5}, {}, {"rank": 4, "density": 0.5}, {"rank": 0}, {"rank": 4097}]
    for options in [*wrong, *({"density": bad} for bad in (0.0, 1.0, -0.5, float("nan")))]:
        if options != needed:
            with pytest.raises(InvalidArgument, match=r"rank|density"):
                Method(name, **options)


def test_entries_are_read_whole_or_refused() -> None:
    assert parse_entry("ink@3=-0.5") == Entry("ink@3", -0.5)
    for text in ("ink", "ink=", "ink=much", "ink=nan", "ink=inf", "Ink=1", "=1", "ink@=1", "ink=1=2"):
        with pytest.raises(InvalidArgument):
            parse_entry(text)
