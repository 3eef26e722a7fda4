"""The reference's factors lie side by side: views where they can be, otherwise gathered once for each composition."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from loramux_kernels import FusedPool, RankRowPool, TableBank, Tables, lora_linear

CPU = torch.device("cpu")
SIZE = 64


def pool_of(k: int = 8, n: int = 6) -> RankRowPool:
    pool = RankRowPool(torch.randn(SIZE, k), torch.randn(SIZE, n))
    pool.a[0] = pool.b[0] = 0
    return pool


def tables_of(rows: Sequence[Sequence[int]], scale: float = 1.0) -> Tables:
    tables = TableBank(CPU).write([[(row, scale) for row in lists] for lists in rows])
    assert tables is not None
    return tables


@pytest.fixture
def gathers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every gather."""
    counts: list[int] = []
    gather = RankRowPool._gather

    def counted(pool: RankRowPool, index: torch.Tensor) -> None:
        counts.append(len(index))
        gather(pool, index)

    monkeypatch.setattr(RankRowPool, "_gather", counted)
    return counts


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "make",
    [
        lambda size, k, n: RankRowPool.zeros(size, k, n, dtype=torch.float32, device=CPU),
        lambda size, k, n: FusedPool(1, size, k, n, dtype=torch.float32, device=CPU).parts[0],
    ],
    ids=["alone", "fused"],
)
def test_rows_take_memory_when_they_are_written(make: Callable[[int, int, int], RankRowPool]) -> None:
    before = resident()
    pool = make(1 << 16, 512, 512)
    pool.write([1, 3], torch.ones(2, 512), torch.ones(2, 512), 1.0)
    assert resident() - before < (pool.a.nbytes + pool.b.nbytes) // 8
    assert pool.a[:5].sum(dim=1).tolist() == pool.b[:5].sum(dim=1).tolist() == [0, 512, 0, 512, 0]


def test_one_adapter_whose_rows_adjoin_is_a_view(gathers: list[int]) -> None:
    pool, tables = pool_of(), tables_of([[5, 6, 7], [5, 6, 7]])
    a, b = pool.gathered(tables.composition)
    assert a.shape == (1, 3, 8) and b.shape == (1, 3, 6)
    assert a.data_ptr() == pool.a[5].data_ptr() and b.data_ptr() == pool.b[5].data_ptr()
    assert gathers == []


def test_a_composition_is_gathered_once_and_again_only_when_it_or_the_pool_changes(gathers: list[int]) -> None:
    pool, x, w0 = pool_of(), torch.randn(4, 3, 8), torch.randn(6, 8)
    blends = [[5, 6, 9], [5, 6, 9], [2], [2]]
    for scale in (1.0, -0.3, 0.7):  # another weight is no other composition
        lora_linear(x, w0, None, pool, tables_of(blends, scale))
    assert gathers == [6]  # a list for each run of rows, of the longest one's length
    place = pool.gathered(tables_of(blends).composition)[0].data_ptr()
    before = lora_linear(x, w0, None, pool, tables_of(blends))
    pool.write((5, 6), torch.randn(2, 8), torch.randn(2, 6), 1.0)
    after = lora_linear(x, w0, None, pool, tables_of(blends))
    assert gathers == [6, 6] and not torch.equal(before[0], after[0]) and torch.equal(before[2], after[2])
    pool.gathered(tables_of([[1], [3]]).composition)
    assert gathers == [6, 6, 2]
    assert pool.gathered(tables_of(blends).composition)[0].data_ptr() == place, "the buffer is another one"


def test_a_composition_larger_than_the_pool_is_not_kept(gathers: list[int]) -> None:
    pool = pool_of()
    tables = tables_of([[row, *range(2, 34)] for row in (40, 50)])
    a, _ = pool.gathered(tables.composition)
    assert torch.equal(a[1, 0], pool.a[50]) and gathers == []


def test_a_change_of_weight_allocates_no_tensor_and_writes_its_row_alone() -> None:
    bank = TableBank(CPU)
    rows = tuple((row, 1.0) for row in range(1, 20))
    first = bank.write([rows, rows, ()])
    assert first is not None
    first.scale[1] = 7.0  # seen again if the second row were written

    class Recorded(TorchDispatchMode):
        calls: ClassVar[list[str]] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls.append(str(func))
            return func(*args, **(kwargs or {}))

    with Recorded():
        second = bank.write([tuple((row, 0.25) for row, _ in rows), rows, ()])
    assert Recorded.calls == []
    assert second is not None and second.idx is first.idx and second.composition is not None
    assert second.scale[0, :19].tolist() == [0.25] * 19 and second.scale[1, 0] == 7.0
    assert second.nrank.tolist() == [19, 19, 0]
    shorter = bank.write([((5, 2.0),), rows, ()])
    assert shorter is not None and shorter.idx[0].tolist() == [5] + [0] * 31 and shorter.scale[0].sum() == 2.0


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(1, SIZE - 1), max_size=20, unique=True), min_size=1, max_size=6))
def test_every_row_gets_its_own_factors(blends: list[list[int]]) -> None:
    if not any(blends):
        return
    pool, tables = pool_of(), tables_of(blends)
    a, b = pool.gathered(tables.composition)
    each = len(blends) // len(tables.composition)
    for i, rows in enumerate(blends):
        got_a, got_b = a[i // each], b[i // each]
        assert torch.equal(got_a[: len(rows)], pool.a[rows]) and torch.equal(got_b[: len(rows)], pool.b[rows])
        assert not got_a[len(rows) :].any() and not got_b[len(rows) :].any()
