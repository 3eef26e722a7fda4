"""The reference operations against float64 algebra written row by row, and the pool's promises."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from loramux_kernels import (
    MAX_ROW_RANK,
    R_CLASSES,
    PoolFull,
    RankRowPool,
    RowAllocator,
    TableBank,
    Tables,
    class_of,
    lora_conv2d,
    lora_linear,
)
from loramux_kernels.pool import balance

CPU = torch.device("cpu")
# Ranks of the batch rows: none, one adapter, and mixed ranks in one row.
BLENDS = [[], [4], [4, 16, 33], [1]]


@pytest.fixture(autouse=True)
def _seeded() -> None:  # pyright: ignore[reportUnusedFunction]
    """The same numbers in every run: among all, some cancel out, and bounds on relative errors are not for those."""
    torch.manual_seed(0)


def _entries(blends: list[list[int]]) -> list[list[tuple[int, float]]]:
    """Scattered rank rows and signed scales for every batch row; rows may share pool rows."""
    numbers = torch.randperm(99)[: max(sum(b) for b in blends)] + 1
    return [[(int(r), float(torch.randn(()))) for r in numbers[: sum(blend)]] for blend in blends]


def _tables(entries: list[list[tuple[int, float]]]) -> Tables:
    tables = TableBank(CPU).write(entries)
    assert tables is not None
    return tables


def _pool(k: int, n: int) -> RankRowPool:
    a, b = torch.randn(100, k), torch.randn(100, n)
    a[0] = b[0] = 0
    return RankRowPool(a, b)


def _relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def _bound(terms: int) -> float:
    """Relative Frobenius error allowed to an fp32 sum of `terms` products: its rounding walks at random."""
    return 4 * 2**-24 * terms**0.5


@pytest.mark.parametrize("k,n,m", [(8, 12, 77), (320, 40, 3), (5, 7, 1)])
@pytest.mark.parametrize("base", [0.0, 1.0])
def test_linear_is_the_sum_of_its_terms(k: int, n: int, m: int, base: float) -> None:
    x, w0 = torch.randn(len(BLENDS), m, k), torch.randn(n, k) * base
    bias = torch.randn(n) * base
    pool = _pool(k, n)
    entries = _entries(BLENDS)
    got = lora_linear(x, w0, bias, pool, _tables(entries))
    for i, row in enumerate(entries):
        want = x[i].double() @ w0.double().T + bias.double()
        for r, s in row:
            want += s * torch.outer(x[i].double() @ pool.a[r].double(), pool.b[r].double())
        if row or base:
            bound = _bound(k + len(row))
            assert _relative(got[i], want) < bound
            assert _relative(got[i] * 1.01, want) > bound


@pytest.mark.parametrize(
    "kernel,stride,padding,dilation",
    [(1, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 2, 2)],
)
@pytest.mark.parametrize("base", [0.0, 1.0])
def test_conv_is_the_sum_of_its_terms(kernel: int, stride: int, padding: int, dilation: int, base: float) -> None:
    cin, n = 6, 10
    x, w0 = torch.randn(len(BLENDS), cin, 9, 7), torch.randn(n, cin, kernel, kernel) * base
    pool = _pool(kernel * kernel * cin, n)
    entries = _entries(BLENDS)
    where = {
        "stride": (stride, stride),
        "padding": (padding, padding),
        "dilation": (dilation, dilation),
    }
    got = lora_conv2d(x, w0, None, pool, _tables(entries), **where)
    for i, row in enumerate(entries):
        weight = w0.double()
        for r, s in row:
            rank_kernel = pool.a[r].double().view(kernel, kernel, cin).permute(2, 0, 1)
            weight = weight + s * pool.b[r].double()[:, None, None, None] * rank_kernel
        want = F.conv2d(x[i : i + 1].double(), weight, **where)[0]
        if row or base:
            bound = _bound(kernel * kernel * cin + len(row))
            assert _relative(got[i], want) < bound
            assert _relative(got[i] * 1.01, want) > bound


def test_swapping_blends_swaps_outputs_and_an_empty_row_is_the_base() -> None:
    x = torch.randn(1, 5, 16).expand(3, -1, -1).contiguous()
    w0, pool = torch.randn(8, 16), _pool(16, 8)
    one, other, none = _entries([[4], [16], []])
    y = lora_linear(x, w0, None, pool, _tables([one, other, none]))
    swapped = lora_linear(x, w0, None, pool, _tables([other, one, none]))
    assert not torch.equal(y[0], y[1])
    assert torch.equal(y[0], swapped[1]) and torch.equal(y[1], swapped[0])
    assert torch.equal(y[2], F.linear(x, w0)[2])


def test_unused_pool_rows_do_not_matter() -> None:
    x, w0, pool = torch.randn(1, 5, 16), torch.randn(8, 16), _pool(16, 8)
    (row,) = _entries([[4]])
    clean = lora_linear(x, w0, None, pool, _tables([row]))
    used = [r for r, _ in row]
    unused = [r for r in range(1, 100) if r not in used]
    pool.a[unused], pool.b[unused] = float("nan"), float("nan")
    assert torch.equal(lora_linear(x, w0, None, pool, _tables([row])), clean)


def test_tables_are_rewritten_in_place() -> None:
    bank = TableBank(CPU)
    first = bank.write([[(3, 1.0)], [(4, 2.0), (5, 3.0)]])
    assert first is not None
    place = first.idx.data_ptr()
    second = bank.write([[(7, 0.5)], []])
    assert second.idx is first.idx and second.scale is first.scale and second.idx.data_ptr() == place
    assert second.idx[0, 0] == 7 and second.idx[1].sum() == 0 and second.scale[1].sum() == 0
    assert second.nrank.tolist() == [1, 0]
    assert bank.write([[], []]) is None


@pytest.mark.parametrize("rank,width", [(0, 0), (1, 16), (16, 16), (17, 32), (512, 512)])
def test_rank_classes(rank: int, width: int) -> None:
    assert class_of(rank, R_CLASSES, "total rank") == width


def test_a_row_above_the_largest_class_is_refused() -> None:
    with pytest.raises(ValueError, match="total rank is 513, at most 512"):
        class_of(MAX_ROW_RANK + 1, R_CLASSES, "total rank")


@given(st.data())
def test_the_allocator_never_hands_out_a_row_twice(data: st.DataObject) -> None:
    rows = RowAllocator(40)
    owned: list[tuple[int, ...]] = []
    for _ in range(data.draw(st.integers(1, 30))):
        if owned and data.draw(st.booleans()):
            rows.give_back(owned.pop(data.draw(st.integers(0, len(owned) - 1))))
            continue
        count = data.draw(st.integers(0, 12))
        before = rows.free
        if count > before:
            with pytest.raises(PoolFull):
                rows.take(count)
            assert rows.free == before
        else:
            owned.append(rows.take(count))
    held = [r for rows_of_one in owned for r in rows_of_one]
    assert len(held) == len(set(held)) and 0 not in held
    assert rows.free == 39 - len(held)


def test_the_allocator_prefers_an_adjoining_run() -> None:
    rows = RowAllocator(20)
    first, second, _third = rows.take(2), rows.take(3), rows.take(4)
    rows.give_back(first)
    rows.give_back(second)
    assert rows.take(5) == (1, 2, 3, 4, 5)
    rows.take(1)
    assert rows.take(3) == (11, 12, 13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_written_factors_neither_underflow_nor_overflow(dtype: torch.dtype) -> None:
    """A of 1e3 with B of 1e-6 and scale 1/16: B's values would vanish in fp16 if cast as they are."""
    a, b, scale = torch.randn(3, 8) * 1e3, torch.randn(3, 6) * 1e-6, 1 / 16
    pool = RankRowPool.zeros(10, 8, 6, dtype=dtype, device=CPU)
    pool.write((2, 3, 4, 5), a, b, scale)
    got = pool.b[2:5].double().T @ pool.a[2:5].double()
    want = scale * b.double().T @ a.double()
    assert _relative(got, want) < 2 * torch.finfo(dtype).eps
    assert pool.a[5].abs().sum() == 0 and pool.b[5].abs().sum() == 0


def test_balancing_is_exact() -> None:
    a, b = torch.randn(4, 5) * 1e4, torch.randn(4, 3) * 1e-5
    a2, b2 = balance(a, b)
    assert torch.equal(b2.double().T @ a2.double(), b.double().T @ a.double())
    assert 0.5 <= a2.abs().max() / b2.abs().max() <= 2


def test_mismatched_shapes_are_named() -> None:
    pool = _pool(16, 8)
    tables = _tables([[(1, 1.0)]])
    with pytest.raises(ValueError, match="tables hold 1 rows, x has 2"):
        lora_linear(torch.randn(2, 3, 16), torch.randn(8, 16), None, pool, tables)
    with pytest.raises(ValueError, match="expected"):
        lora_linear(torch.randn(1, 3, 16), torch.randn(9, 16), None, pool, tables)


@pytest.mark.parametrize("rank", [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 320, MAX_ROW_RANK])
def test_one_adapter_of_any_rank(rank: int) -> None:
    """Beside one of another rank, through written factors; peers went wrong at 32 and 64."""
    x, w0 = torch.randn(2, 9, 24), torch.randn(20, 24)
    pool = RankRowPool.zeros(rank + 4, 24, 20, dtype=torch.float32, device=CPU)
    a, b = torch.randn(rank, 24), torch.randn(rank, 20)
    pool.write(range(1, rank + 1), a, b, 0.5)
    pool.write(range(rank + 1, rank + 4), torch.randn(3, 24), torch.randn(3, 20), 1.0)
    got = lora_linear(x, w0, None, pool, _tables([[(r, 0.8) for r in range(1, rank + 1)], [(rank + 2, 1.0)]]))
    want = x[0].double() @ (w0.double() + 0.8 * 0.5 * b.double().T @ a.double()).T
    assert _relative(got[0], want) < _bound(24 + rank)
    assert _relative(got[0] * 1.01, want) > _bound(24 + rank)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("axis", ["outputs", "inputs"])
def test_rows_without_scales_keep_their_bits_beside_rows_with_them(axis: str, conv: bool) -> None:
    """c (W0 x) + bias, or W0 (d x) + bias, in the rows that have them; the others get what they get without company."""
    torch.manual_seed(4)
    shape, x = ((24, 16, 3, 3), torch.randn(3, 16, 9, 8)) if conv else ((24, 16), torch.randn(3, 7, 16))
    w0, bias = torch.randn(shape), torch.randn(24)
    pool = RankRowPool.zeros(8, w0[0].numel(), 24, dtype=torch.float32, device=x.device)
    scale = torch.rand(24 if axis == "outputs" else 16) + 0.5
    (pool.write_output_scale if axis == "outputs" else pool.write_input_scale)(3, scale)

    def result(entries: list[tuple[tuple[int, float], ...]]) -> torch.Tensor:
        tables = TableBank(x.device, 16).write([((1, 1.0),)] * 3, **{axis: entries})
        assert tables is not None
        assert getattr(tables, axis) is None or getattr(tables, axis).idx.shape[1] == 64, "of one width in any company"
        op = lora_conv2d if conv else lora_linear
        return op(x, w0, bias, pool, tables, impl="reference")

    alone, company = result([(), (), ()]), result([(), ((3, 0.6),), ()])
    assert torch.equal(alone[0], company[0]) and torch.equal(alone[2], company[2])
    c = (1 + 0.6 * (scale.double() - 1)).view(-1, *(1,) * (2 * conv))
    d, c = (1, c) if axis == "outputs" else (c, 1)
    base = (F.conv2d if conv else F.linear)(x[1:2].double() * d, w0.double())[0] * c
    want = base + bias.double().view(-1, *(1,) * (2 * conv))
    assert float((company[1].double() - want).norm() / want.norm()) < 1e-6
    assert float((alone[1].double() - want).norm() / want.norm()) > 0.02, "the scale does nothing"


def test_scale_pools_grow_and_keep_what_they_hold() -> None:
    pool = RankRowPool.zeros(4, 6, 5, dtype=torch.float32, device=CPU)
    pool.write_output_scale(1, None, 8)
    assert pool.g is None and pool.h is None, "what scales nothing takes no memory"
    scales = {number: torch.rand(5) for number in (1, 2, 9, 40)}
    for number, scale in scales.items():
        pool.write_output_scale(number, scale, 64 if number > 8 else 8)
    assert pool.g is not None and len(pool.g) == 64
    assert all(torch.allclose(1 + pool.g[number], scale) for number, scale in scales.items())
    pool.write_output_scale(9, None, 128)
    assert not pool.g[0].any() and not pool.g[9].any() and len(pool.g) == 128
    assert torch.allclose(1 + pool.g[40], scales[40])
