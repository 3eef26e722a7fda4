"""Tuning without a card: a false clock, and a table that stays as it is where nothing was measured."""

from dataclasses import replace

import pytest
import torch

from loramux_kernels import lora_linear
from loramux_kernels.triton import dispatch
from loramux_kernels.triton.dispatch import Call, ExpandTile, GemmTile, Line, Plan, ShrinkTile
from loramux_server.bench import card, plans, shapes, tune
from loramux_server.bench.layer import check, make_blends, make_layer
from loramux_server.bench.shapes import LayerShape
from loramux_server.bench.tune import Measured

H100, AMPERE_86 = 227 << 10, 99 << 10
SPLIT = Plan("split", GemmTile(64, 64, 64, 16, 4, 3), ShrinkTile(64, 64, 16, 4, 3))
SINGLE = Plan("single", GemmTile(64, 64, 64, 16, 4, 3), None)
VENDOR = Plan("vendor", ExpandTile(64, 64, 16, 4), ShrinkTile(64, 64, 16, 4, 3))
TABLE = """\
arch,bits,op,m,n,k,r,variant,tile,shrink,evidence
# of all cards
sm_80,16,linear,192,1280,*,*,split,64x64x64r16w4s3,64x64r16w4s3,predicted
sm_80,16,linear,*,*,*,*,split,128x64x64r16w4s3,64x64r16w4s3,predicted
sm_80,32,linear,*,*,*,*,vendor,64x64r16w4,64x64r16w4s3,predicted
# Hopper
sm_90,16,linear,192,1280,2048,64,single,64x64x64r16w4s3,-,predicted
sm_90,16,linear,768,1280,*,*,split,64x64x64r16w4s3,64x64r16w4s3,predicted
# whatever was not measured
sm_90,16,linear,*,*,*,*,split,128x64x64r16w4s3,64x64r16w4s3,predicted
sm_90,16,conv,*,*,*,*,conv,64x64r16w4,64x64r16w4s3,predicted
"""


def measured_by_a_false_clock(calls: list[Call]) -> dict[Call, Measured]:
    """The vendor's product is fast where there are many activations, a single pass where there are few."""
    found: dict[Call, Measured] = {}
    for call in calls:
        times = {SPLIT: 3e-6, VENDOR: 2e-6 if call.m > 1000 else 4e-6}
        if call.r <= 64:
            times[SINGLE] = 1e-6 if call.m <= 1000 else 5e-6
        found[call] = Measured(1.5e-6, {}, times)
    return found


def all_calls() -> list[Call]:
    return [point.call for point in tune.points(shapes.SHAPES)]


def picked(lines: list[Line], call: Call) -> Line:
    return next(line for line in lines if line.fits(call))


def test_every_measured_call_meets_its_own_line_first() -> None:
    calls = all_calls()
    measured = measured_by_a_false_clock(calls)
    text = tune.rewritten(TABLE, tune.tuned("sm_90", measured, "H100; today; triton 3"))
    lines = [line for line in dispatch.read(text.splitlines()) if line.arch == "sm_90"]
    assert len(calls) > 100
    for call in calls:
        line = picked(lines, call)
        assert line.bounds == (call.m, call.n, call.k, call.r)
        assert line.plan == (VENDOR if call.m > 1000 else SINGLE)
        assert line.evidence.startswith("measured ") and "base 1.5 us (vendor)" in line.evidence


def test_what_was_not_measured_is_still_served() -> None:
    lines = dispatch.read(
        tune.rewritten(TABLE, tune.tuned("sm_90", measured_by_a_false_clock(all_calls()), "")).splitlines()
    )
    lines = [line for line in lines if line.arch == "sm_90"]
    assert picked(lines, Call("linear", 16, 512, 1280, 1280, 512)).bounds == (768, 1280, None, None)
    assert picked(lines, Call("linear", 16, 10**6, 4, 4, 512)).bounds == (None,) * 4
    assert picked(lines, Call("conv", 16, 64, 320, 4, 16)).plan.variant == "conv"
    scaled = replace(all_calls()[0], scaled_outputs=True, scaled_inputs=True)
    assert picked(lines, scaled).plan.variant == "split"


def test_the_rest_of_the_table_stays_byte_for_byte() -> None:
    lines = tune.tuned("sm_90", measured_by_a_false_clock(all_calls()[:3]), "a card, with a comma; today")
    text = tune.rewritten(TABLE, lines)
    new = dispatch.write(lines).splitlines(keepends=True)[1:]
    assert len(new) == 3
    gone = "sm_90,16,linear,192,1280,2048,64,single,64x64x64r16w4s3,-,predicted\n"
    assert text == TABLE.replace(gone, "".join(new))
    assert tune.rewritten(text, lines) == text
    assert all(line.count(",") == len(dispatch.COLUMNS) - 1 for line in new)


@pytest.mark.parametrize("arch,like", [("sm_100", "sm_90"), ("sm_120", "sm_80")])
def test_an_architecture_that_was_not_listed_keeps_what_it_took_from_another(arch: str, like: str) -> None:
    """sm_120 has as little shared memory as sm_89, so that here the newest older one is sm_80."""
    (line,) = tune.tuned(arch, measured_by_a_false_clock(all_calls()[:1]), "card")
    text = tune.rewritten(TABLE, [line])
    assert text.startswith(TABLE)
    assert text.removeprefix(TABLE).splitlines() == [
        dispatch.write([line]).splitlines()[1],
        *(kept.replace(like, arch) for kept in TABLE.splitlines() if kept.startswith(like) and ",*," in kept),
    ]


def test_a_table_that_would_leave_calls_unserved_is_refused() -> None:
    lines = tune.tuned("sm_75", measured_by_a_false_clock(all_calls()[:1]), "card")
    with pytest.raises(ValueError, match="sm_75"):
        tune.rewritten(TABLE, lines)


def test_the_committed_table_can_be_rewritten() -> None:
    text = dispatch.TABLE.read_text()
    for arch in ("sm_90", "sm_100"):
        new = tune.rewritten(text, tune.tuned(arch, measured_by_a_false_clock(all_calls()), "card"))
        assert [line for line in new.splitlines() if not line.startswith(arch)] == [
            line for line in text.splitlines() if not line.startswith(arch)
        ]
        assert dispatch.read(new.splitlines())


@pytest.mark.parametrize("limit", [H100, AMPERE_86])
def test_candidates_fit_shared_memory_and_can_be_spelled(limit: int) -> None:
    for point in tune.points(shapes.SHAPES):
        found = plans.candidates(point.call, point.shape.tokens, limit)
        assert {plan.variant for plan in found} == {"split", "single", "vendor"}
        assert len(set(found)) == len(found)
        for plan in found:
            if isinstance(plan.tile, GemmTile):
                assert plans.shared_bytes(plan.tile, point.call, beside=plan.shrink is None) <= limit
        lines = [Line("sm_90", 16, "linear", (None, None, None, point.call.r), plan, "") for plan in found]
        assert dispatch.read(dispatch.write(lines).splitlines()) == lines
    point = tune.points(shapes.SHAPES)[-1]
    assert len(plans.candidates(point.call, 1024, H100)) > len(plans.candidates(point.call, 1024, AMPERE_86))
    wide = replace(point.call, r=512)
    assert all(plan.variant != "single" for plan in plans.candidates(wide, 1024, H100))


def test_the_fastest_of_each_variant_is_told() -> None:
    point = tune.points(shapes.SHAPES)[0]
    measured = Measured(2e-6, {SPLIT.tile: 3e-6}, {SPLIT: 4e-6, SINGLE: 3e-6, VENDOR: 5e-6})
    assert measured.best == SINGLE
    assert [row.value for row in tune.told(point, measured)] == pytest.approx([1.5, 2, 1.5, 2.5])


def test_enough_copies_to_leave_the_cache() -> None:
    assert card.copies_of(10 << 20, 50 << 20) == 10
    assert card.copies_of(1 << 30, 50 << 20) == 1
    assert card.copies_of(1 << 10, 50 << 20) == 128


def test_shapes_are_those_of_the_two_unets() -> None:
    """Totals of the table that the kernels were designed by."""
    for model, launches, fewer, gflop in ((shapes.SD15, 192, 144, 258.8), (shapes.SDXL, 722, 512, 4354)):
        apart = shapes.of_model(model)
        together = shapes.stacked(apart)
        assert sum(shape.count for shape in apart) == launches
        assert sum(shape.count for shape in together) == fewer
        for layers in (apart, together):
            assert sum(shape.count * shape.flop for shape in layers) / 1e9 == pytest.approx(gflop, rel=1e-3)


@pytest.mark.parametrize("stacked", [False, True])
@torch.inference_mode()
def test_every_variant_in_the_interpreter(stacked: bool) -> None:
    """What is timed on a card computes the layer: `check` refuses it otherwise."""
    shape = LayerShape("tiny", "", 1, 20, 64, 64, 3, 3, stacked=stacked)
    cpu = torch.device("cpu")
    layer = make_layer(shape, 2, torch.float16, cpu)
    (blend,) = make_blends(2, [(16, 16)], cpu)
    sides = card.sides(layer, blend, shape)
    assert sides.keys() == {"dispatch", "split", "single", "vendor"}
    check(layer, blend, sides)
    tile = GemmTile(64, 64, 64, 16, 4, 1)
    plain = card.plain_gemm(layer, blend, tile)()
    assert (plain.float() - layer.base().float()).norm() < 1e-3 * plain.float().norm()
    with pytest.raises(AssertionError, match="vendor computes something else"):
        check(layer, blend, {"vendor": layer.base})


def test_a_blend_that_does_nothing_is_refused() -> None:
    cpu = torch.device("cpu")
    layer = make_layer(LayerShape("tiny", "", 1, 20, 64, 64), 2, torch.float32, cpu)
    (blend,) = make_blends(2, [(16,)], cpu)
    layer.pool.b.zero_()
    with pytest.raises(AssertionError, match="do nothing"):
        check(layer, blend, {"op": lambda: lora_linear(layer.x, layer.w0, None, layer.pool, blend.tables)})
