"""The kernels on a card: what the interpreter cannot see, and every shape class at its real size.

Needs torch, triton and pytest alone: it also runs from a checkout that is not installed.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from oracle import MIXED, NARROW, Conv, Linear, conv, error, floor, linear

from loramux_kernels import TableBank, default_impl, lora_conv2d, lora_linear, lora_qkv
from loramux_kernels.triton.dispatch import Call, ExpandTile, GemmTile, Plan, ShrinkTile

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.*eterministic:UserWarning"),  # of the vendor's products
    pytest.mark.skipif(
        not torch.cuda.is_available() or default_impl(torch.device("cuda")) != "triton",
        reason="no card of 8.0 or newer",
    ),
]

# 1.5 times the rounding floor: of one rounding, for fp32 of adding K terms.
ALLOWED = {torch.float16: 3.1e-4, torch.bfloat16: 2.5e-3, torch.float32: 1e-6}
VARIANTS = ("dispatch", "split", "single", "vendor")
GUIDED = ((16, 16, 16), (16, 16, 16))

# tokens, k, n: one of each class. Ragged in every direction; text; one tile; two and a half tiles along N.
SMALL = ((77, 96, 80), (77, 768, 320), (64, 64, 64), (130, 320, 960), (50, 128, 136))
# As in Stable Diffusion 1.5 and XL: square, GEGLU's first and second, short and deep, text.
REAL = (
    (4096, 320, 320),
    (4096, 320, 2560),
    (4096, 1280, 320),
    (1024, 640, 640),
    (1024, 640, 5120),
    (256, 1280, 1280),
    (64, 5120, 1280),
    (77, 768, 1280),
    (4096, 640, 640),
    (1024, 1280, 10240),
    (1024, 5120, 1280),
    (77, 2048, 1280),
)


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Uninitialised memory is NaN; the vendor's products are as exact as ours."""
    fp32, fp16 = (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
    )
    bf16 = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty gives
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32 = fp32
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = fp16
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = bf16


def plan_of(variant: str, dtype: torch.dtype) -> Plan:
    """One that fits every card from 8.0 on."""
    wide = dtype != torch.float32
    shrink = ShrinkTile(64, 64 if wide else 32, 32, 4, 3)
    if variant == "vendor":
        return Plan(variant, ExpandTile(64, 64, 16, 4), shrink)
    tile = GemmTile(64, 64, 64 if wide else 32, 16, 4, 3)
    return Plan(variant, tile, shrink if variant == "split" else None)


def run(case: Linear, variant: str) -> torch.Tensor:
    pool = case.fused if len(case.fused.parts) > 1 else case.pool
    if variant == "dispatch" and len(case.fused.parts) > 1:
        return lora_qkv(case.x, case.w0, case.bias, case.fused, case.tables, impl="triton")
    if variant == "dispatch":
        return lora_linear(case.x, case.w0, case.bias, case.pool, case.tables, impl="triton")
    from loramux_kernels.triton import launch

    return launch.linear(case.x, case.w0, case.bias, pool, case.tables, plan_of(variant, case.x.dtype))


def blends_of(variant: str) -> tuple:
    return NARROW if variant == "single" else MIXED


def check(case: Linear, variant: str) -> None:
    got, want = run(case, variant), case.want()
    bound = ALLOWED[case.x.dtype]
    if case.x.dtype == torch.float32:
        bound = max(bound, 1.5 * floor(want, torch.float32, case.x.shape[-1] + case.tables.width))
    assert torch.isfinite(got).all()
    assert error(got, want) <= bound
    assert error(got * 1.01, want) > bound


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("m,k,n", SMALL)
def test_every_variant_is_at_the_rounding_floor(m: int, k: int, n: int, variant: str, dtype: torch.dtype) -> None:
    """Four rows with different blends, the whole and the adapter term alone (W0 = 0)."""
    for base in (1.0, 0.0):
        check(linear(dtype, m=m, k=k, n=n, blends=blends_of(variant), base=base, device="cuda"), variant)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("m,k,n", REAL)
def test_real_shapes(m: int, k: int, n: int, variant: str, dtype: torch.dtype) -> None:
    check(linear(dtype, m=m, k=k, n=n, blends=GUIDED, bias=False, device="cuda"), variant)


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("parts,k,n", [(3, 320, 320), (2, 768, 640), (3, 64, 40)])
def test_projections_of_one_input(parts: int, k: int, n: int, variant: str, dtype: torch.dtype) -> None:
    check(linear(dtype, m=77, k=k, n=n, parts=parts, blends=NARROW, device="cuda"), variant)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions(stride: int, dtype: torch.dtype) -> None:
    for kernel, padding in (((3, 3), (1, 1)), ((1, 1), (0, 0))):
        case: Conv = conv(
            dtype, cin=64, n=96, size=(18, 14), kernel=kernel, padding=padding, stride=(stride, stride), device="cuda"
        )
        got = lora_conv2d(case.x, case.w0, case.bias, case.pool, case.tables, **case.where, impl="triton")
        want = case.want()
        assert error(got, want) <= 2 * ALLOWED[dtype] < error(got * 1.01, want)


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_swapped_blends_swap_outputs_bit_by_bit(variant: str, dtype: torch.dtype) -> None:
    case = linear(dtype, m=200, k=320, n=320, blends=blends_of(variant), device="cuda")
    case = replace(case, x=case.x[:1].expand(4, -1, -1).contiguous())
    first, none, third, fourth = case.tables.entries
    y, swapped = run(case, variant), run(case.with_entries([third, none, first, fourth]), variant)
    assert not torch.equal(y[0], y[2]) and not torch.equal(y[0], y[1])
    assert torch.equal(y[0], swapped[2]) and torch.equal(y[2], swapped[0]) and torch.equal(y[3], swapped[3])


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_without_rank_rows_has_the_bits_of_the_base(variant: str, dtype: torch.dtype) -> None:
    case = linear(dtype, m=200, k=320, n=320, blends=blends_of(variant), device="cuda")
    none = run(case.with_entries([[] for _ in case.x]), variant)
    assert torch.equal(run(case, variant)[1], none[1])
    if variant == "vendor":
        assert torch.equal(none, F.linear(case.x, case.w0, case.bias))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_captured_graph_serves_every_blend_of_its_class(variant: str) -> None:
    """The tables are rewritten in place between replays: other rows, other ranks, no rank rows at all."""
    case = linear(torch.float16, m=256, k=640, n=640, blends=blends_of(variant), device="cuda")
    entries = case.tables.entries
    bank = TableBank(case.x.device)
    tables = bank.write(entries)
    assert tables is not None
    case = replace(case, tables=tables)
    run(case, variant)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run(case, variant)
    for rows in (entries, [entries[2], entries[0], (), entries[3]], [(), (), entries[0], ()], entries):
        now = bank.write(rows)
        assert now is not None and now.idx is tables.idx
        y.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        seen = replace(case, tables=now)
        want, bound = seen.want(), ALLOWED[torch.float16]
        assert error(y, want) <= bound < error(y * 1.01, want)
        assert torch.equal(y, run(seen, variant))


def test_rows_written_between_replays_are_read() -> None:
    """An adapter that is replaced in the pool: the graph reads the new factors."""
    case = linear(torch.float16, m=64, k=320, n=320, blends=NARROW, device="cuda")
    run(case, "split")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run(case, "split")
    graph.replay()
    before = y.clone()
    rows = [row for row, _ in case.tables.entries[2]]
    case.pool.b[rows] = case.pool.b[rows] * 2
    graph.replay()
    torch.cuda.synchronize()
    assert not torch.equal(y[2], before[2])
    assert error(y, case.want()) <= ALLOWED[torch.float16]


def test_the_committed_table_serves_this_card() -> None:
    from loramux_kernels.triton import launch
    from loramux_kernels.triton.dispatch import plan_for

    arch = launch._arch(torch.device("cuda"))
    for bits in (16, 32):
        for r in (16, 512):
            assert plan_for(arch, Call("linear", bits, 154, 320, 768, r))
