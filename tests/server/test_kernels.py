"""The engine with the Triton kernels: interpreted on the CPU, a step of the tiny base end to end; and the setting."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention

from loramux_kernels import ops
from loramux_server import device
from loramux_server.engine.blends import EVERYWHERE, NOTHING, Added
from loramux_server.engine.fused_attention import FusedProjections, fuse_projections
from loramux_server.engine.lora_layers import wrap
from loramux_server.engine.module_factors import ModuleFactors
from loramux_server.errors import BadSetting
from loramux_server.requests import BlendEntry, GenerationRequest, ImageKey

EVERYTHING, ATTENTION, CONVOLUTION = (BlendEntry(name, 1.0) for name in ("everything", "attention", "convolution"))
SMALL = GenerationRequest("a dog", steps=1, width=24, height=16, guidance_scale=1.0)
"""One row of 12 x 8 latents, as the interpreter is slow: tokens and pixels fill no tile."""
REQUESTS = [
    replace(SMALL, seed=1, blend=(EVERYTHING,)),
    replace(SMALL, seed=1),
    replace(SMALL, prompt="a red apple", seed=2, blend=(replace(ATTENTION, weight=-0.6),)),
    replace(SMALL, seed=3, blend=(ATTENTION, replace(CONVOLUTION, weight=0.4))),
]


def stepped(server: Any, requests: list[GenerationRequest]) -> torch.Tensor:
    """Final latents [pictures, 4, h, w] of one-step requests in one forward."""
    engine = server.app.engine
    jobs = [server.admission.admit(request) for request in requests]
    for job in jobs:
        engine.begin(job, engine.load(job).result())
    results = engine.step([ImageKey(job.id, 0) for job in jobs])
    return torch.cat([result.latents for result in results])


@pytest.fixture(scope="module")
def servers(
    server_class: Any, three_adapters: Callable[..., Any], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """Made once: the interpreted kernels test themselves before a server takes them."""
    folder = tmp_path_factory.mktemp("kernels")
    both = {impl: server_class(str(tiny_base), folder / impl, kernels=impl) for impl in ("reference", "triton")}
    for server in both.values():
        server.publish(three_adapters(tiny_base, folder, 0.5))
    yield both
    for server in both.values():
        server.close()


def test_one_step_with_the_triton_kernels_is_that_of_the_reference(servers: dict[str, Any]) -> None:
    want, got = (stepped(servers[impl], REQUESTS) for impl in ("reference", "triton"))
    plain = stepped(servers["reference"], [replace(request, blend=()) for request in REQUESTS])
    moved = [float((a - b).norm() / b.norm()) for a, b in zip(want, plain, strict=True)]
    assert min(moved[0], *moved[2:]) > 0.02, "a blend does nothing"
    # fp32 through some 60 layers: a few hundred roundings of 6e-8
    assert float((got - want).norm() / want.norm()) < 2e-5
    tables = servers["triton"].forwards[-1]
    assert {len(set(t.nrank.tolist())) for t in tables.values()} & {3, 4}, "the forward did not mix ranks"


def test_without_adapters_nothing_of_triton_runs_and_no_bit_changes(servers: dict[str, Any]) -> None:
    plain = [replace(SMALL, seed=1, guidance_scale=4.0), replace(SMALL, seed=2)]
    for server in servers.values():
        loaded = server.app.engine.load(server.admission.admit(REQUESTS[0])).result()
        assert loaded.rows, "the pools are there"
    want, got = (stepped(servers[impl], plain) for impl in ("reference", "triton"))
    assert torch.equal(got, want)


def test_q_k_v_are_one_operation(servers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    unet = servers["triton"].app.engine.base.unet
    fused = [module for module in unet.modules() if isinstance(module, FusedProjections)]
    assert [len(module._layers) for module in fused] == [3, 2] * (len(fused) // 2) and fused
    calls: list[int] = []
    launch = ops.import_module("loramux_kernels.triton.launch")
    lora_qkv = launch.lora_qkv

    def counted(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append(len(rest[2].parts))
        return lora_qkv(x, *rest)

    monkeypatch.setattr(launch, "lora_qkv", counted)
    stepped(servers["triton"], [replace(REQUESTS[2], prompt="a dog")])
    assert sorted(calls) == sorted(len(module._layers) for module in fused)


def test_scales_and_side_operations_go_with_fused_projections() -> None:
    """An attention of which q has a decomposed LoRA and k a Kronecker product, beside their fused product."""

    def attended(impl: ops.Impl, added: Added) -> torch.Tensor:
        torch.manual_seed(0)
        attention = Attention(32, heads=2, dim_head=16)
        model = torch.nn.ModuleDict({"block": torch.nn.ModuleDict({"attn1": attention})})
        group = wrap({"unet": model}, impl, side_bytes=1 << 20)["unet.attention"]
        assert fuse_projections(model) == 1
        group.open(32, torch.device("cpu"))
        rank = {"a": torch.randn(2, 32), "b": torch.randn(2, 32), "m": torch.rand(32)}
        sides = {"w1": torch.randn(4, 4), "w2": torch.randn(8, 8)}
        paths = {"to_q": ModuleFactors(rank, 0.5, "output"), "to_k": ModuleFactors(sides, 0.5)}
        owned = {group.name: (1, 2), f"{group.name} output scales": (1,), f"{group.name} side operations": (1,)}
        group.write(owned, {f"unet.block.attn1.{name}": factors for name, factors in paths.items()})
        with torch.inference_mode(), group.adding([{EVERYWHERE: added}, {EVERYWHERE: NOTHING}]):
            return attention(torch.randn(2, 5, 32))

    whole = Added(rows=((1, 0.7), (2, 0.7)), outputs=((1, 0.7),), sides=((1, 0.7),))
    plain = attended("reference", NOTHING)
    for added in (whole, replace(whole, sides=()), replace(whole, rows=(), outputs=())):
        want, got = attended("reference", added), attended("triton", added)
        assert float((want[0] - plain[0]).norm() / plain[0].norm()) > 0.02 and torch.equal(want[1], plain[1])
        assert float((got - want).norm() / want.norm()) < 2e-6


def test_forcing_triton_where_it_cannot_run_is_refused(
    make_server: Callable[..., Any], tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BadSetting, match=r"kernels is 'triton': needs an NVIDIA card, .* the device is cpu"):
        make_server(tiny_base, kernels="triton")
    monkeypatch.setattr(ops, "find_spec", lambda name: None)
    with pytest.raises(BadSetting, match="the package triton is not installed"):
        make_server(tiny_base, kernels="triton")


def test_where_last_bits_matter_the_reference_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "default_impl", lambda _device: "triton")
    monkeypatch.setattr(device, "self_test", lambda *_: None)
    where = torch.device("cpu"), torch.float32
    assert device.find_kernels("auto", *where, deterministic=False) == "triton"
    assert device.find_kernels("auto", *where, deterministic=True) == "reference"
    with pytest.raises(BadSetting, match="kernels is 'triton' with --deterministic; expected reference, or auto"):
        device.find_kernels("triton", *where, deterministic=True)


def test_the_choice_is_told(servers: dict[str, Any]) -> None:
    for impl, server in servers.items():
        labels = {"version": server.app.version, "base": server.app.engine.base.name, "device": "cpu", "kernels": impl}
        assert server.app.metrics.registry.get_sample_value("loramux_build_info", labels) == 1
