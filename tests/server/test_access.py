"""Tokens and what they are good for; limits as accounts over a clock that the test turns."""

import asyncio
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import pytest
from by_hand import ByHand, context
from grpc_health.v1 import health_pb2
from hypothesis import given
from hypothesis import strategies as st

from loramux.v1 import adapter_service_pb2, generation_pb2, generation_service_pb2
from loramux_server.access import NEEDED, Access, Holder, Limits, Scope, digest_of, new_token, read_access
from loramux_server.callers import Caller, answering
from loramux_server.errors import BadSetting, Busy, Draining, Forbidden, OverLimit, TooLate, Unknown
from loramux_server.gate import Gate
from loramux_server.limits import Account, Meter, Meters, cost_of
from loramux_server.requests import Job, Output, Priority, Queued, Sampler, Sampling, Stepped, TextMode

GENERATE = "/loramux.v1.GenerationService/Generate"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def access(**holders: Holder) -> Access:
    """Everybody's token is their name."""
    return Access({digest_of(name): holder for name, holder in holders.items()})


def bearer(token: str) -> Sequence[tuple[str, str]]:
    return [("user-agent", "x"), ("authorization", f"Bearer {token}")]


def test_every_rpc_has_a_scope() -> None:
    services = [
        service
        for file in (generation_service_pb2, adapter_service_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
    ]
    ours = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert len(ours) > 10 and ours <= set(NEEDED)


@pytest.mark.parametrize("scope", Scope)
def test_a_token_is_good_for_its_scope_alone(scope: Scope) -> None:
    known = access(x=Holder("x", frozenset({scope})))
    for method, needed in [*NEEDED.items(), (REFLECTION, Scope.ADMIN), ("/any.Other/Method", Scope.ADMIN)]:
        if needed in (None, scope) or scope is Scope.ADMIN:
            assert known.admit(method, bearer("x")).name == "x"
        else:
            with pytest.raises(Forbidden, match=f"needs the scope {needed}"):
                known.admit(method, bearer("x"))


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ([], "TOKEN_MISSING"),
        ([("authorization", "Basic eDp4")], "TOKEN_MISSING"),
        ([("authorization", "Bearer ")], "TOKEN_MISSING"),
        (bearer("y"), "TOKEN_UNKNOWN"),
        (bearer(digest_of("x")), "TOKEN_UNKNOWN"),
        (bearer("gone"), "TOKEN_EXPIRED"),
    ],
)
def test_who_is_not_known_is_told_why(metadata: Sequence[tuple[str, str]], reason: str) -> None:
    everything = frozenset({Scope.ADMIN})
    known = access(x=Holder("x", everything), gone=Holder("gone", everything, expires=date(2026, 1, 31)))
    with pytest.raises(Unknown) as caught:
        known.admit(GENERATE, metadata, today=date(2026, 2, 1))
    assert caught.value.reason == reason
    assert known.admit(GENERATE, bearer("gone"), today=date(2026, 1, 31)).name == "gone"


def test_health_is_open_and_without_tokens_everything_is() -> None:
    gate = Gate(access())
    health = f"/{health_pb2.DESCRIPTOR.services_by_name['Health'].full_name}/Check"
    assert gate.enter(health, ()).caller("ipv4:1.2.3.4:5").holder is None
    with pytest.raises(Unknown):
        gate.enter(GENERATE, ())
    assert Gate().enter(REFLECTION, ()).caller("ipv4:1.2.3.4:5", "cn").holder == "cn"
    known = Gate(access(ann=Holder("ann", frozenset({Scope.ADMIN}))))
    assert known.enter(GENERATE, bearer("ann")).caller("ipv4:1.2.3.4:5", "cn").holder == "ann"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[x]\nsha256 = 'SECRET'\nscopes = ['generate']", "x.sha256"),
        ("[x]\nsha256 = 'DIGEST'\nscopes = ['draw']", "x.scopes"),
        ("[x]\nsha256 = 'DIGEST'\nscopes = []", "x.scopes"),
        ("[x]\nscopes = ['admin']", "x.sha256"),
        ("[x]\nsha256 = 'DIGEST'\nscopes = ['admin']\nrequest_per_second = 1", "x.request_per_second"),
        ("[x]\nsha256 = 'DIGEST'\nscopes = ['admin']\nconcurrent_images = 0", "x.concurrent_images"),
        ("['a b']\nsha256 = 'DIGEST'\nscopes = ['admin']", "a b is no name"),
        ("x = 3", "x"),
        (
            "[x]\nsha256 = 'DIGEST'\nscopes = ['admin']\n[y]\nsha256 = 'DIGEST'\nscopes = ['admin']",
            "has the token of x",
        ),
        ("[", "TOML"),
    ],
)
def test_a_wrong_file_is_refused_without_telling_digests(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(text.replace("DIGEST", digest_of("t")).replace("SECRET", "not-so-secret"))
    with pytest.raises(BadSetting) as caught:
        read_access(file)
    assert told in str(caught.value)
    assert digest_of("t") not in str(caught.value) and "not-so-secret" not in str(caught.value)


def test_tokens_are_long_and_never_the_same() -> None:
    made = {new_token() for _ in range(100)}
    assert len(made) == 100 and min(map(len, made)) >= 43


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(
    rate=st.floats(0.01, 100),
    most=st.floats(0.1, 1000),
    asked=st.lists(st.tuples(st.floats(0, 50), st.floats(0.01, 500)), max_size=40),
)
def test_an_account_grants_what_it_fills_by_and_overdraws_once(
    rate: float, most: float, asked: list[tuple[float, float]]
) -> None:
    clock = Clock()
    account, granted, largest, start = Account(rate, most, clock), 0.0, 0.0, clock.now
    for pause, amount in asked:
        clock.now += pause
        if wait := account.empty_for:
            later = Clock()
            later.now = clock.now + wait * 1.001 + 1e-6
            account._clock = later
            assert account.empty_for == 0.0  # the wait that is told is enough
            account._clock, clock.now = clock, later.now
        account.spend(amount)
        granted += amount
        largest = max(largest, amount)
        assert granted <= most + rate * (clock.now - start) + largest + 1e-6 * granted


def job(images: int = 1, steps: int = 10, guidance: float = 1.0) -> Job:
    sampling = Sampling(Sampler.EULER, steps, guidance_scale=guidance)
    return Job(
        "id", "", "", TextMode(), (), None, sampling, 0, images, 1000, 500, Output(), Priority.NORMAL
    )  # fmt: skip


def test_cost_counts_pixels_steps_rows_and_pictures() -> None:
    assert cost_of(job()) == pytest.approx(5.0)
    assert cost_of(job(images=3, steps=20, guidance=7.5)) == pytest.approx(5.0 * 3 * 2 * 2)


def test_pictures_at_once_are_counted_while_they_are_drawn() -> None:
    meter = Meter(Holder("x", frozenset(), Limits(concurrent_images=3)))
    with meter.drawing(job(2)):
        with pytest.raises(OverLimit) as caught, meter.drawing(job(2)):
            pytest.fail("drawn")
        assert caught.value.reason == "CONCURRENT_IMAGES"
        with meter.drawing(job(1)):
            pass
        with pytest.raises(RuntimeError), meter.drawing(job(1)):
            raise RuntimeError
    with meter.drawing(job(3)):
        pass


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(requests_per_second=1), "REQUEST_RATE"),
        (Limits(cost_per_minute=50), "COST_RATE"),
        (Limits(upload_bytes_per_day=10), "UPLOAD_BYTES"),
    ],
)
def test_each_rate_ends_with_a_wait_after_which_it_goes_on(limits: Limits, reason: str) -> None:
    clock = Clock()
    meter = Meter(Holder("x", frozenset(), limits), clock)

    def use() -> None:
        meter.call()
        meter.upload(1)
        with meter.drawing(job()) as drawn:
            drawn.hear(Stepped(0, 10, 10))

    for _ in range(10):
        use()
    with pytest.raises(OverLimit) as caught:
        use()
    assert caught.value.reason == reason and 0 < caught.value.retry_after <= timedelta(days=1).total_seconds()
    clock.now += caught.value.retry_after * 1.001
    use()


def test_a_refused_request_costs_nothing() -> None:
    clock = Clock()
    meter = Meter(Holder("x", frozenset(), Limits(cost_per_minute=5)), clock)
    for _ in range(10):
        with pytest.raises(Busy), meter.drawing(job()):
            raise Busy("the queue is full", 1.0)
    with meter.drawing(job()) as drawn:
        drawn.hear(Queued(0))
    assert meter._cost is not None and meter._cost.empty_for == 0.0


@given(
    steps=st.integers(1, 20),
    images=st.integers(1, 4),
    made=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20)), max_size=30),
)
def test_a_request_costs_what_was_drawn_of_it(steps: int, images: int, made: list[tuple[int, int]]) -> None:
    """And a step more of each picture, up to its last: that one may be under way."""
    clock, reached = Clock(), [0] * images
    meter, asked = Meter(Holder("x", frozenset(), Limits(cost_per_minute=1e6)), clock), job(images, steps)
    with meter.drawing(asked) as drawn:
        drawn.hear(Queued(3))
        for index, step in made:
            if index < images and reached[index] < step <= steps:
                drawn.hear(Stepped(index, step, steps))
                reached[index] = step
    assert meter._cost is not None
    per_step = cost_of(asked) / (steps * images)
    expected = per_step * sum(min(steps, step + 1) for step in reached)
    assert 1e6 - meter._cost._held == pytest.approx(expected, abs=1e-6)


async def test_what_a_slow_reader_does_not_read_is_charged() -> None:
    """It hears one event of its stream and leaves; eight steps of ten were made meanwhile."""
    hand, meter = ByHand(), Meter(Holder("x", frozenset(), Limits(cost_per_minute=1000)), Clock())
    answering(Caller("here", "x", meter=meter))
    stream = hand.service.GenerateStream(generation_pb2.GenerateRequest(prompt="x"), context())
    await anext(stream)
    taken = await hand.until_taken(1)
    taken.step(*range(1, 9))
    await asyncio.sleep(0)
    await stream.aclose()  # type: ignore[attr-defined]
    assert taken.outcome == "cancelled" and meter._cost is not None
    assert 1000 - meter._cost._held == pytest.approx(0.9 * cost_of(taken.job))


async def test_a_call_that_is_cancelled_is_charged_for_the_steps_it_took() -> None:
    """Those that the loop has not had a turn to hear of too."""
    hand, meter = ByHand(), Meter(Holder("x", frozenset(), Limits(cost_per_minute=1000)), Clock())
    answering(Caller("here", "x", meter=meter))
    call = asyncio.create_task(hand.service.Generate(generation_pb2.GenerateRequest(prompt="x"), context()))
    taken = await hand.until_taken(1)
    taken.step(*range(1, 5))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    taken.step(5)  # the tick that was under way: it was charged for already
    assert taken.outcome == "cancelled" and meter._cost is not None
    assert 1000 - meter._cost._held == pytest.approx(0.5 * cost_of(taken.job))


async def test_a_call_wakes_the_loop_for_pictures_and_the_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    hand, woken = ByHand(), list[object]()
    answering(Caller("here", "x"))
    call = asyncio.create_task(hand.service.Generate(generation_pb2.GenerateRequest(prompt="x"), context()))
    taken = await hand.until_taken(1)
    loop = asyncio.get_running_loop()
    wake = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *what: (woken.append(what), wake(*what))[1])
    taken.step(*range(1, 11))
    assert not woken
    taken.finish()
    assert len(woken) == 2 and len((await call).images) == 1


async def test_a_request_that_the_queue_refuses_costs_nothing() -> None:
    hand, meter = ByHand(), Meter(Holder("x", frozenset(), Limits(cost_per_minute=5)), Clock())
    answering(Caller("here", "x", meter=meter))
    for refusal in (Busy("full", 1.0), TooLate("late", 9.0), Draining("stopping")):
        hand.refusals = [refusal] * 3
        for _ in range(3):
            with pytest.raises(type(refusal)):
                await hand.service.Generate(generation_pb2.GenerateRequest(prompt="x"), context())
    assert meter._cost is not None and meter._cost._held == 5


def test_a_meter_stays_while_its_limits_do() -> None:
    meters, one, other = Meters(), Limits(requests_per_second=1), Limits(requests_per_second=2)
    first = meters.of(Holder("x", frozenset(), one))
    assert meters.of(Holder("x", frozenset({Scope.ADMIN}), one)) is first
    assert meters.of(Holder("x", frozenset(), other)) is not first
    assert meters.of(Holder("y", frozenset(), one)) is not first
