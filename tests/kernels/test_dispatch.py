"""The dispatch table: written as it is read, an answer for every call, and no line that cannot be reached."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_kernels import R_CLASSES
from loramux_kernels.triton import dispatch
from loramux_kernels.triton.dispatch import COLUMNS, Call, Line, plan_for, read, table, write

HEADING = ",".join(COLUMNS)
ARCHS = sorted({line.arch for line in table()})
CALLS = st.builds(
    Call,
    op=st.just("linear"),
    bits=st.sampled_from((16, 32)),
    m=st.integers(1, 1 << 20),
    n=st.integers(1, 1 << 15),
    k=st.integers(1, 1 << 15),
    r=st.sampled_from(R_CLASSES[1:]),
    scaled_outputs=st.booleans(),
    scaled_inputs=st.booleans(),
)


def test_the_table_is_written_as_it_is_read() -> None:
    text = dispatch.TABLE.read_text()
    assert read(write(table()).splitlines()) == list(table())
    assert write(table()).splitlines() == [line for line in text.splitlines() if not line.startswith("#")]


def test_every_card_is_listed() -> None:
    assert ARCHS == ["interpreter", "sm_80", "sm_86", "sm_89", "sm_90"]


@given(st.sampled_from(ARCHS), CALLS, st.booleans())
def test_every_call_finds_a_plan_that_can_do_it(arch: str, call: Call, conv: bool) -> None:
    if conv:
        call = replace(call, op="conv", scaled_inputs=False)
    plan = plan_for(arch, call)
    assert (plan.variant == "conv") == conv
    assert (plan.shrink is None) == (plan.variant == "single")
    if plan.variant == "single":
        assert call.r <= 64 and not call.scaled_outputs and not call.scaled_inputs
    if plan.variant == "vendor":
        assert not call.scaled_inputs


@pytest.mark.parametrize(
    "card,listed",
    [
        ("sm_87", "sm_86"),
        ("sm_100", "sm_90"),
        ("sm_103", "sm_90"),
        ("sm_120", "sm_89"),  # these have the shared memory of sm_89, not of sm_90
        ("sm_121", "sm_89"),
    ],
)
@given(call=CALLS)
def test_a_card_without_lines_takes_those_of_another(card: str, listed: str, call: Call) -> None:
    assert plan_for(card, call) == plan_for(listed, call)


def test_a_card_older_than_all_listed_ones_has_no_plan() -> None:
    with pytest.raises(LookupError, match="sm_75"):
        plan_for("sm_75", Call("linear", 16, 2, 64, 64, 16))


def _hides(earlier: Line, later: Line) -> bool:
    """Whether every call that fits the later line fits the earlier one too."""
    able = {"split": {"split", "single", "vendor"}, "vendor": {"vendor", "single"}}
    return (
        (earlier.arch, earlier.bits, earlier.op) == (later.arch, later.bits, later.op)
        and later.plan.variant in able.get(earlier.plan.variant, {earlier.plan.variant})
        and all(
            high is None or (low is not None and low <= high)
            for low, high in zip(later.bounds, earlier.bounds, strict=True)
        )
    )


def test_no_line_is_hidden_by_an_earlier_one() -> None:
    lines = table()
    hidden = [(a, b) for i, b in enumerate(lines) for a in lines[:i] if _hides(a, b)]
    assert hidden == []


def test_a_hidden_line_would_be_noticed() -> None:
    wide, narrow = read(
        [
            HEADING,
            "sm_90,16,linear,*,640,*,*,split,64x64x64r16w4s3,64x64r16w4s3,x",
            "sm_90,16,linear,77,640,*,32,single,64x64x64r16w4s3,-,x",
        ]
    )
    assert _hides(wide, narrow)
    assert not _hides(narrow, wide)


@pytest.mark.parametrize(
    "line,message",
    [
        ("sm_90,16,linear,*,*,*,*,split,64x64r16w4,64x64r16w4s3,x", "64x64r16w4"),
        ("sm_90,16,linear,*,*,*,*,vendor,64x64x64r16w4s3,64x64r16w4s3,x", "64x64x64r16w4s3"),
        ("sm_90,16,linear,*,*,*,*,split,64x64x64r32w4s3,64x64r16w4s3,x", "unwritten"),
        ("sm_90,16,linear,many,*,*,*,split,64x64x64r16w4s3,64x64r16w4s3,x", "many"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read([HEADING, line])
