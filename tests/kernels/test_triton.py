"""The Triton kernels in Triton's interpreter against float64: every variant at the rounding floor of its dtype.

Memory that nothing was written to is NaN here, in outputs, buffers and pool rows alike.
"""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import MIXED, NARROW, Linear, conv, error, floor, linear, scales, tables_of

from loramux_kernels import TableBank, lora_conv2d, lora_linear, lora_qkv
from loramux_kernels.triton import launch
from loramux_kernels.triton.dispatch import ExpandTile, GemmTile, Plan, ShrinkTile

ALLOWED = 1.5  # times the rounding floor
DECOMPOSED = (*NARROW, ())
DTYPES = [torch.float16, torch.float32]
SHRINK = ShrinkTile(32, 64, 16, 4, 1)
PLANS = {
    "split": Plan("split", GemmTile(64, 32, 64, 16, 4, 1), SHRINK),
    "split in wide steps": Plan("split", GemmTile(32, 64, 32, 32, 4, 1), ShrinkTile(64, 32, 64, 4, 1)),
    "split in one step": Plan("split", GemmTile(32, 32, 64, 64, 4, 1), ShrinkTile(32, 64, 64, 4, 1)),
    "single": Plan("single", GemmTile(32, 64, 64, 16, 4, 1), None),
    "vendor": Plan("vendor", ExpandTile(32, 64, 16, 4), SHRINK),
}


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills what torch.empty gives
    yield
    torch.use_deterministic_algorithms(False)


def run(case: Linear, plan: Plan) -> torch.Tensor:
    pool = case.fused if len(case.fused.parts) > 1 else case.pool
    return launch.linear(case.x, case.w0, case.bias, pool, case.tables, plan)


def blends_of(plan: str) -> tuple:
    return NARROW if plan in ("single", "split in one step") else MIXED


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("plan", PLANS)
def test_every_variant_is_at_the_rounding_floor(plan: str, dtype: torch.dtype) -> None:
    """The whole, the adapter term alone (W0 = 0) and as a difference; M = 77, K and N no multiples of a tile."""
    for base in (1.0, 0.0):
        case = linear(dtype, m=77, k=96, n=80, blends=blends_of(plan), base=base)
        got, want = run(case, PLANS[plan]), case.want()
        bound = ALLOWED * floor(want, dtype, 96 + case.tables.width)
        assert torch.isfinite(got).all()
        assert error(got, want) <= bound
        assert error(got * 1.01, want) > bound
        without = case.with_entries([[] for _ in case.x])
        adapters = want - without.want()
        difference = got.double() - run(without, PLANS[plan]).double()
        assert error(difference, adapters) <= 2 * bound * float(want.norm() / adapters.norm())


@pytest.mark.parametrize("plan", PLANS)
def test_a_scale_that_is_one_percent_off_is_seen(plan: str) -> None:
    case = linear(torch.float16, m=33, k=64, n=48, blends=blends_of(plan), base=0.0)
    want = case.want()
    off = case.with_entries([[(r, s * 1.01) for r, s in row] for row in case.tables.entries])
    assert error(run(off, PLANS[plan]), want) > ALLOWED * floor(want, torch.float16, 64)


@pytest.mark.parametrize("plan", PLANS)
def test_swapping_blends_swaps_outputs_and_a_row_without_adapters_is_the_base(plan: str) -> None:
    case = linear(torch.float16, m=40, k=64, n=48, blends=blends_of(plan))
    x = case.x[:1].expand(4, -1, -1).contiguous()
    case = Linear(x, case.w0, case.bias, case.fused, case.tables)
    first, none, third, fourth = case.tables.entries
    y = run(case, PLANS[plan])
    swapped = run(case.with_entries([third, none, first, fourth]), PLANS[plan])
    assert not torch.equal(y[0], y[2]) and not torch.equal(y[0], y[1])
    assert torch.equal(y[0], swapped[2]) and torch.equal(y[2], swapped[0]) and torch.equal(y[3], swapped[3])
    base = run(case.with_entries([[] for _ in x]), PLANS[plan])
    assert torch.equal(y[1], base[1])
    if plan == "vendor":
        assert torch.equal(y[1], F.linear(x, case.w0, case.bias)[1])


@pytest.mark.parametrize("plan", PLANS)
def test_the_same_blend_gives_the_same_bits_at_every_place_in_the_batch(plan: str) -> None:
    case = linear(torch.float16, m=40, k=64, n=48, blends=blends_of(plan))
    whole = run(case, PLANS[plan])
    order = [2, 0, 3, 1]
    moved = Linear(case.x[order].contiguous(), case.w0, case.bias, case.fused, case.tables)
    moved = moved.with_entries([case.tables.entries[i] for i in order])
    assert torch.equal(run(moved, PLANS[plan]), whole[order])


@pytest.mark.parametrize("k", [65, 20])
@pytest.mark.parametrize("plan", PLANS)
def test_a_single_rank_row_behind_a_row_without_any(plan: str, k: int) -> None:
    """K one more than a tile, and K less than one."""
    case = linear(torch.float16, m=40, k=k, n=48, blends=((), (1,), (64,)))
    got, want = run(case, PLANS[plan]), case.want()
    assert error(got, want) <= ALLOWED * floor(want, torch.float16, 64)
    without = case.with_entries([(), (), case.tables.entries[2]])
    assert not torch.equal(run(without, PLANS[plan])[1], got[1])


@pytest.mark.parametrize("plan", ["split", "split in wide steps", "vendor"])
def test_the_largest_total_rank(plan: str) -> None:
    case = linear(torch.float16, m=20, k=64, n=48, blends=((512,), (), (300, 100, 5), (16,)))
    assert case.tables.width == 512
    got, want = run(case, PLANS[plan]), case.want()
    assert error(got, want) <= ALLOWED * floor(want, torch.float16, 64)


def test_the_order_of_adapters_in_a_blend_matters_only_at_the_floor() -> None:
    case = linear(torch.float16, m=40, k=64, n=48)
    reordered = case.with_entries([row[::-1] for row in case.tables.entries])
    got, want = run(reordered, PLANS["split"]), case.want()
    assert error(got, want) <= ALLOWED * floor(want, torch.float16, 64)


def test_tables_are_read_anew_in_every_launch() -> None:
    """What a captured graph does: the same tensors, rewritten in place between replays."""
    case = linear(torch.float16, m=20, k=64, n=48)
    bank = TableBank(torch.device("cpu"))
    entries = case.tables.entries
    for rows in (entries, [entries[2], entries[0], (), entries[3]], [(), (), entries[0], ()]):
        tables = bank.write(rows)
        assert tables is not None and tables.width == 256
        now = Linear(case.x, case.w0, case.bias, case.fused, tables)
        got, want = run(now, PLANS["split"]), now.want()
        assert error(got, want) <= ALLOWED * floor(want, torch.float16, 64)


@settings(max_examples=12)
@given(st.data())
def test_any_shape_and_any_ranks(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 3))
    blends = data.draw(
        st.lists(
            st.lists(st.integers(1, 40), max_size=3).filter(lambda ranks: sum(ranks) <= 64),
            min_size=rows,
            max_size=rows,
        )
    )
    plan = data.draw(st.sampled_from(sorted(PLANS)))
    dtype = data.draw(st.sampled_from(DTYPES))
    m, k, n = (data.draw(st.integers(1, 150)) for _ in range(3))
    case = linear(dtype, m=m, k=k, n=n, blends=blends, bias=data.draw(st.booleans()))
    got, want = run(case, PLANS[plan]), case.want()
    # small outputs have few roundings to average over: their floor is that of one rounding, u / sqrt(3)
    least = {torch.float16: 2**-11, torch.float32: 2**-23}[dtype]
    assert error(got, want) <= ALLOWED * max(floor(want, dtype, k + 64), least)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", [2, 3])
def test_projections_of_one_input_in_one_launch(parts: int, dtype: torch.dtype) -> None:
    """Adapters that touch one part only: their rows of the other parts are zero."""
    case = linear(dtype, m=77, k=64, n=40, parts=parts, blends=NARROW)
    only_last = [row for row, _ in case.tables.entries[2]]
    for pool in case.fused.parts[:-1]:
        pool.a[only_last] = pool.b[only_last] = 0
    want = case.want()
    for name in ("split", "single", "vendor"):
        got = run(case, PLANS[name])
        assert error(got, want) <= ALLOWED * floor(want, dtype, 64 + 64)
        base = run(case.with_entries([[] for _ in case.x]), PLANS[name])
        assert torch.equal(got[2, :, :40], base[2, :, :40]) and not torch.equal(got[2, :, -40:], base[2, :, -40:])
    by_op = lora_qkv(case.x, case.w0, case.bias, case.fused, case.tables, impl="triton")
    assert error(by_op, want) <= ALLOWED * floor(want, dtype, 64 + 64)


def decomposed(case: Linear, outputs: bool, inputs: bool) -> Linear:
    """Weight decomposition in some batch rows: 0 and 2 along one axis, 1 not at all, 3 and 4 along both, 4 without
    any rank row."""
    g = h = None
    if outputs:
        for row in (3, 5):
            case.pool.write_output_scale(row, 1 + torch.randn(case.pool.b.shape[1]) * 0.5)
        g = [[], [], [(5, -1.1)], [(3, 0.4), (5, 0.9)], [(3, 0.7)]]
    if inputs:
        case.pool.write_input_scale(7, 1 + torch.randn(case.pool.a.shape[1]) * 0.5)
        h = [[(7, 0.8)], [], [], [(7, -0.6)], [(7, 0.3)]]
    tables = TableBank(torch.device("cpu")).write(case.tables.entries, g, h)
    assert tables is not None
    return Linear(case.x, case.w0, case.bias, case.fused, tables)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs,inputs", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("impl,bias", [("reference", True), ("triton", True), ("triton", False)])
def test_weight_decomposition_along_either_axis_and_both(
    impl: str, bias: bool, outputs: bool, inputs: bool, dtype: torch.dtype
) -> None:
    case = decomposed(linear(dtype, m=77, k=64, n=48, blends=DECOMPOSED, bias=bias), outputs, inputs)
    got = lora_linear(case.x, case.w0, case.bias, case.pool, case.tables, impl=impl)
    want = case.want()
    plain = Linear(case.x, case.w0, case.bias, case.fused, tables_of(case.tables.entries, torch.device("cpu"))).want()
    assert error(plain, want) > 0.1 and torch.equal(plain[1], want[1]), "the scales do nothing"
    c, d = scales(case.pool, case.tables, 3)
    assert (len(c) > 1) == outputs and (len(d) > 1) == inputs
    # the reference in 16 bits rounds its base term, S and the scaled product one after another
    allowed = ALLOWED if impl == "triton" else 2.5
    assert error(got, want) <= allowed * floor(want, dtype, 2 * 64 + 64)


def test_weight_decomposition_by_the_vendors_product() -> None:
    for bias in (True, False):
        case = decomposed(linear(torch.float16, m=50, k=64, n=48, blends=DECOMPOSED, bias=bias), True, False)
        want = case.want()
        assert error(run(case, PLANS["vendor"]), want) <= ALLOWED * floor(want, torch.float16, 64)


@pytest.mark.parametrize("bias", [True, False])
def test_projections_with_scales_of_their_own(bias: bool) -> None:
    case = linear(torch.float32, m=20, k=64, n=40, parts=3, blends=NARROW, bias=bias)
    case.fused.parts[1].write_output_scale(2, 1 + torch.randn(40))
    tables = TableBank(torch.device("cpu")).write(case.tables.entries, [[(2, 0.5)]] * 4)
    assert tables is not None
    case = Linear(case.x, case.w0, case.bias, case.fused, tables)
    for impl in ("reference", "triton"):
        got = lora_qkv(case.x, case.w0, case.bias, case.fused, tables, impl=impl)
        want = case.want()
        assert error(got, want) <= ALLOWED * floor(want, torch.float32, 128)


# S of a few rank rows is rounded once: enough pixels that its error is near its mean
CONVS = {
    "3x3": {"cin": 24, "n": 40, "size": (17, 13)},
    "stride 2": {"cin": 16, "n": 24, "size": (26, 23), "stride": (2, 2)},
    "dilated": {"cin": 8, "n": 16, "size": (17, 15), "padding": (2, 2), "dilation": (2, 2)},
    "unpadded and oblong": {"cin": 8, "n": 16, "size": (17, 15), "kernel": (3, 5), "padding": (0, 1)},
    "1x1": {"cin": 24, "n": 40, "size": (17, 13), "kernel": (1, 1), "padding": (0, 0)},
    "1x1 of every second pixel": {
        "cin": 24, "n": 40, "size": (25, 23), "kernel": (1, 1), "padding": (0, 0), "stride": (2, 2)
    },
    "four channels in": {"cin": 4, "n": 40, "size": (16, 16)},
    "four channels out": {"cin": 40, "n": 4, "size": (24, 24)},  # few channels, so more pixels to average over
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONVS)
def test_convolutions(name: str, dtype: torch.dtype) -> None:
    for base in (1.0, 0.0):
        case = conv(dtype, base=base, **CONVS[name])
        got = lora_conv2d(case.x, case.w0, case.bias, case.pool, case.tables, impl="triton", **case.where)
        want = case.want()
        bound = ALLOWED * floor(want, dtype, case.pool.a.shape[1] + 64)
        assert torch.isfinite(got).all()
        assert error(got, want) <= bound
        assert error(got * 1.01, want) > bound


def test_a_convolution_row_without_adapters_is_the_base() -> None:
    case = conv(torch.float16, **CONVS["3x3"])
    y = lora_conv2d(case.x, case.w0, case.bias, case.pool, case.tables, impl="triton", **case.where)
    none = tables_of([[] for _ in case.x], torch.device("cpu"))
    base = lora_conv2d(case.x, case.w0, case.bias, case.pool, none, impl="triton", **case.where)
    assert torch.equal(y[1], base[1]) and not torch.equal(y[0], base[0])
    assert error(base, F.conv2d(case.x.double(), case.w0.double(), case.bias.double(), **case.where)) < 4e-4


def test_convolutions_too_large_for_one_portion(monkeypatch: pytest.MonkeyPatch) -> None:
    case = conv(torch.float16, **CONVS["3x3"])

    def whole() -> torch.Tensor:
        return lora_conv2d(case.x, case.w0, case.bias, case.pool, case.tables, impl="triton", **case.where)

    at_once = whole()
    monkeypatch.setattr(launch, "_TAP_BYTES", 1)
    assert torch.equal(whole(), at_once)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs,inputs", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("kernel", ["3x3", "1x1"])
def test_weight_decomposition_of_convolutions(kernel: str, outputs: bool, inputs: bool, dtype: torch.dtype) -> None:
    case = conv(dtype, blends=DECOMPOSED, **CONVS[kernel])
    g = h = None
    if outputs:
        case.pool.write_output_scale(3, 1 + torch.randn(case.w0.shape[0]) * 0.5)
        g = [[], [], [(3, -1.1)], [(3, 0.4)], [(3, 0.7)]]
    if inputs:
        case.pool.write_input_scale(7, 1 + torch.randn(case.w0.shape[1]) * 0.5)
        h = [[(7, 0.8)], [], [], [(7, -0.6)], [(7, 0.3)]]
    tables = TableBank(torch.device("cpu")).write(case.tables.entries, g, h)
    assert tables is not None
    case = type(case)(case.x, case.w0, case.bias, case.pool, tables, case.where)
    want = case.want()
    for impl, allowed in (("triton", ALLOWED), ("reference", 2.5)):
        got = lora_conv2d(case.x, case.w0, case.bias, case.pool, tables, impl=impl, **case.where)
        assert error(got, want) <= allowed * floor(want, dtype, 2 * case.pool.a.shape[1] + 64)


@pytest.mark.parametrize("plan", PLANS)
def test_bf16_has_the_layout_of_the_others(plan: str) -> None:
    """Its values are not trusted in the interpreter; that every output is written, and none read, is."""
    case = linear(torch.bfloat16, m=77, k=64, n=48, blends=blends_of(plan))
    got = run(case, PLANS[plan])
    assert got.dtype == torch.bfloat16 and got.shape == (4, 77, 48)
    assert torch.isfinite(got).all()


@pytest.mark.long
@pytest.mark.parametrize("rank", range(1, 129))
def test_every_rank_to_128(rank: int) -> None:
    case = linear(torch.float16, m=17, k=32, n=24, blends=((rank,), (), (129 - rank,)))
    want = case.want()
    for name in ("split", "split in wide steps", "vendor"):
        assert error(run(case, PLANS[name]), want) <= ALLOWED * floor(want, torch.float16, 32)
