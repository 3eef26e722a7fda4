"""What a captured graph needs of the launches: grids that depend on shapes alone, nothing allocated and nothing
read back between them."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from oracle import NARROW, Linear, conv, linear
from torch.utils._python_dispatch import TorchDispatchMode

from loramux_kernels import lora_conv2d, lora_linear, lora_qkv
from loramux_kernels.triton import conv_expand, expand, gemm_expand, launch, shrink, single_pass
from loramux_kernels.triton.dispatch import Call, ExpandTile, GemmTile, Plan, ShrinkTile

PLANS = {
    "split": Plan("split", GemmTile(64, 64, 64, 16, 4, 1), ShrinkTile(64, 64, 16, 4, 1)),
    "single": Plan("single", GemmTile(64, 64, 64, 16, 4, 1), None),
    "vendor": Plan("vendor", ExpandTile(64, 64, 16, 4), ShrinkTile(64, 64, 16, 4, 1)),
}
KERNELS = {
    shrink: "_shrink_kernel",
    gemm_expand: "_gemm_expand_kernel",
    single_pass: "_single_pass_kernel",
    expand: "_expand_kernel",
    conv_expand: "_conv_expand_kernel",
}


class Recorded(TorchDispatchMode):
    """The launches with their grids and the torch operations between them, in order; launches do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, object]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.events.append((str(func), None))
        return func(*args, **(kwargs or {}))

    def launches(self) -> list[tuple[str, object]]:
        return [event for event in self.events if event[1] is not None]

    def between_launches(self) -> list[str]:
        places = [i for i, (_, grid) in enumerate(self.events) if grid is not None]
        return [name for name, grid in self.events[places[0] : places[-1]] if grid is None]


class _Launcher:
    def __init__(self, name: str, recorded: Recorded) -> None:
        self.name, self.recorded = name, recorded

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **kwargs: self.recorded.events.append((self.name, grid))


@contextmanager
def recording(monkeypatch: pytest.MonkeyPatch) -> Generator[Recorded]:
    recorded = Recorded()
    with monkeypatch.context() as patch, recorded:
        for module, name in KERNELS.items():
            patch.setattr(module, name, _Launcher(name, recorded))
        yield recorded


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("parts", [1, 3])
def test_a_linear_layer(plan: str, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = linear(torch.float16, m=77, k=64, n=48, blends=NARROW, parts=parts)
    entries = case.tables.entries
    seen = []
    for rows in (entries, [entries[0][:50], (), (), ()], [(), *entries[:3]]):
        now = case.with_entries(rows)
        assert now.tables.width == 64
        with recording(monkeypatch) as recorded:
            _run(now, PLANS[plan])
        seen.append(recorded.launches())
        assert _no_host_read(recorded) and not recorded.between_launches()
    assert len(seen[0]) == (1 if plan == "single" else 2)
    assert seen[0] == seen[1] == seen[2]


def test_the_table_is_asked_with_the_sizes_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Call] = []
    plan_for = launch.plan_for

    def noted(arch: str, call: Call) -> Plan:
        asked.append(call)
        return plan_for(arch, call)

    monkeypatch.setattr(launch, "plan_for", noted)
    case = linear(torch.float16, m=7, k=64, n=48, blends=NARROW, parts=3)
    with recording(monkeypatch):
        lora_linear(case.x, case.w0[:48], None, case.pool, case.tables, impl="triton")
        lora_qkv(case.x, case.w0, None, case.fused, case.tables, impl="triton")
        square = conv(torch.float32, cin=8, n=16, size=(9, 7), stride=(2, 2))
        lora_conv2d(square.x, square.w0, None, square.pool, square.tables, impl="triton", **square.where)
    assert asked == [
        Call("linear", 16, 4 * 7, 48, 64, 64),
        Call("linear", 16, 4 * 7, 3 * 48, 64, 64),
        Call("conv", 32, 4 * 5 * 4, 16, 8, 64),
    ]


def test_a_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    case = conv(torch.float16, cin=8, n=16, size=(9, 7))
    with recording(monkeypatch) as recorded:
        lora_conv2d(case.x, case.w0, case.bias, case.pool, case.tables, impl="triton", **case.where)
    assert [name for name, _ in recorded.launches()] == ["_shrink_kernel", "_conv_expand_kernel"]
    assert _no_host_read(recorded) and not recorded.between_launches()


def _run(case: Linear, plan: Plan) -> None:
    launch.linear(case.x, case.w0, case.bias, case.fused if len(case.fused.parts) > 1 else case.pool, case.tables, plan)


def _no_host_read(recorded: Recorded) -> bool:
    return not any("_local_scalar_dense" in name or "_to_copy" in name for name, _ in recorded.events)
