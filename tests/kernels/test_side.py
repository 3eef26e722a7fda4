"""Side operations against their dense deltas in float64, on awkward shapes, in the batch rows that use them alone."""

from math import prod

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from loramux_kernels import (
    Dense,
    Hadamard,
    Kronecker,
    NormDelta,
    SideOperation,
    Use,
    add_conv2d,
    add_linear,
    add_norm,
    uses,
)

# Relative RMS. fp32: sums of up to 200 products. fp16: factors, activations and sum are rounded, 2^-11 each.
BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-3}
WHERE = ((2, 1), (1, 2), (1, 2))
ROWS = 4
BLENDS = [((3, 0.5), (5, -2.0)), (), ((5, 1.5),), ((3, 1.0), (9, 4.0))]
"""Of four batch rows; number 9 is not in the layer."""


def delta_of(
    kind: str, shape: tuple[int, ...], scale: float, like: Tensor
) -> tuple[Dense | Kronecker | Hadamard, Tensor]:
    """The operation, and the delta by its formula in float64."""
    n, k = shape[0], prod(shape[1:])
    if kind == "dense":
        weight = torch.randn(shape)
        return Dense.of(weight, scale, like), scale * weight.double()
    if kind == "kronecker":
        w1, w2 = torch.randn(3, 2), torch.randn(n // 3, shape[1] // 2, *shape[2:])
        product = torch.einsum("ac,bd...->abcd...", w1.double(), w2.double()).reshape(shape)
        return Kronecker.of(w1, w2, scale, like), scale * product
    p1, q1, p2, q2 = torch.randn(n, 2), torch.randn(2, k), torch.randn(n, 3), torch.randn(3, k)
    product = ((p1.double() @ q1.double()) * (p2.double() @ q2.double())).reshape(shape)
    return Hadamard.of(p1, q1, p2, q2, scale, like), scale * product


def wanted(delta: Tensor, x: Tensor, side: SideOperation) -> Tensor:
    """outputs * delta(inputs * x) + bias in float64."""
    ones = (1,) * (x.dim() - 2 if delta.dim() == 4 else 0)
    x = x.double() if side.inputs is None else x.double() * side.inputs.double().view(-1, *ones)
    y = F.linear(x, delta) if delta.dim() == 2 else F.conv2d(x, delta, None, *WHERE)
    y = y if side.outputs is None else y * side.outputs.double().view(-1, *ones)
    return y if side.bias is None else y + side.bias.double().view(-1, *ones)


def close(got: Tensor, want: Tensor, bound: float) -> bool:
    return bool((got.double() - want).norm() <= bound * want.norm())


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [(15, 26), (15, 8, 3, 2)], ids=["linear", "conv"])
@pytest.mark.parametrize("kind", ["dense", "kronecker", "hadamard"])
@pytest.mark.parametrize("extra", ["", "outputs", "inputs", "bias"])
def test_rows_that_use_an_operation_get_its_delta(
    kind: str, shape: tuple[int, ...], dtype: torch.dtype, extra: str
) -> None:
    torch.manual_seed(0)
    x = torch.randn(ROWS, 5, shape[1]).to(dtype) if len(shape) == 2 else torch.randn(ROWS, shape[1], 7, 6).to(dtype)
    like = torch.empty(shape, dtype=dtype)
    sides: dict[int, SideOperation] = {}
    deltas: dict[int, Tensor] = {}
    for number, scale in ((3, 0.7), (5, 0.1)):
        operation, deltas[number] = delta_of(kind, shape, scale, like)
        width = shape[1] if extra == "inputs" else shape[0]
        sides[number] = SideOperation(operation, **({extra: torch.randn(width)} if extra else {}))
        assert operation.dense().shape == shape
    base = (
        F.linear(x, torch.randn(shape).to(dtype))
        if len(shape) == 2
        else F.conv2d(x, torch.randn(shape).to(dtype), None, *WHERE)
    )
    before = base.double()
    for alone in (False, True):
        used = uses(BLENDS, x.device, alone=alone)
        y = base.clone()
        got = add_linear(y, x, sides, used) if len(shape) == 2 else add_conv2d(y, x, sides, used, WHERE)
        assert got is y and torch.equal(y[1], base[1]), "a row that uses none has changed"
        for row, entries in enumerate(BLENDS):
            want = before[row] + sum(
                w * wanted(deltas[n], x[row : row + 1], sides[n])[0] for n, w in entries if n in sides
            )
            assert close(y[row], want, BOUNDS[dtype])
            assert not entries or not close(before[row], want, 20 * BOUNDS[dtype]), "it does nothing"


def test_each_row_by_itself_has_the_same_bits_in_any_company() -> None:
    torch.manual_seed(1)
    operation, _ = delta_of("kronecker", (96, 64), 1.0, torch.empty(96, 64))
    x, base = torch.randn(ROWS, 33, 64), torch.randn(ROWS, 33, 96)

    def result(blends: list[tuple[tuple[int, float], ...]]) -> Tensor:
        return add_linear(base.clone(), x, {3: SideOperation(operation)}, uses(blends, x.device, alone=True))

    company = result([((3, 0.5),)] * ROWS)
    for row in range(ROWS):
        alone = result([((3, 0.5),) if at == row else () for at in range(ROWS)])
        assert torch.equal(alone[row], company[row])


def test_uses_join_rows_or_leave_each_alone() -> None:
    def plain(found: tuple[Use, ...]) -> list[tuple[int, list[int], list[float]]]:
        return [(use.number, use.rows.tolist(), use.weights.tolist()) for use in found]

    cpu = torch.device("cpu")
    assert plain(uses(BLENDS, cpu)) == [(3, [0, 3], [0.5, 1.0]), (5, [0, 2], [-2.0, 1.5]), (9, [3], [4.0])]
    assert plain(uses(BLENDS, cpu, alone=True)) == [
        (3, [0], [0.5]), (3, [3], [1.0]), (5, [0], [-2.0]), (5, [2], [1.5]), (9, [3], [4.0])
    ]  # fmt: skip
    assert uses([(), ()], cpu) == ()


@pytest.mark.parametrize("after", [(), (1, 1)])
@pytest.mark.parametrize("parts", [("weight",), ("bias",), ("weight", "bias")])
def test_normalisations(after: tuple[int, ...], parts: tuple[str, ...]) -> None:
    torch.manual_seed(2)
    normalised = torch.randn(2, 6, 3, 4) if after else torch.randn(2, 3, 6)
    weight, bias = (torch.randn(6) if part in parts else None for part in ("weight", "bias"))
    y = torch.randn_like(normalised)
    base = y.clone()
    add_norm(y, normalised, {1: NormDelta(weight, bias)}, uses([(), ((1, 0.5),)], y.device), after)
    want = sum(
        part.double().view(-1, *after) * factor
        for part, factor in ((weight, normalised[1]), (bias, 1.0))
        if part is not None
    )
    assert torch.equal(y[0], base[0])
    assert torch.allclose(y[1].double(), base[1].double() + 0.5 * want, atol=1e-6)


def test_small_and_large_factors_survive_sixteen_bits() -> None:
    """Each factor alone would under- or overflow in fp16; their product does not."""
    torch.manual_seed(3)
    like = torch.empty(15, 26, dtype=torch.float16)
    tiny, huge = 2.0**-30, 2.0**30
    w1, w2 = torch.randn(3, 2) * tiny, torch.randn(5, 13) * huge
    assert close(Kronecker.of(w1, w2, 0.5, like).dense(), 0.5 * torch.kron(w1.double(), w2.double()), 2e-3)
    p1, q1, p2, q2 = (
        torch.randn(15, 2) * tiny,
        torch.randn(2, 26) * tiny,
        torch.randn(15, 2) * huge,
        torch.randn(2, 26) * huge,
    )
    want = (p1.double() @ q1.double()) * (p2.double() @ q2.double())
    assert close(Hadamard.of(p1, q1, p2, q2, 1.0, like).dense(), want, 4e-3)
