"""Requests with an id: drawn once for all who ask, whoever comes, leaves and fails in between."""

import asyncio
import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from by_hand import ByHand, Taken, context
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loramux.v1 import generation_pb2
from loramux_server import callers
from loramux_server.access import Holder, Limits
from loramux_server.callers import Caller
from loramux_server.errors import Busy, InvalidRequest, OverLimit, PictureFailed
from loramux_server.limits import Meter, cost_of
from loramux_server.messages import generation_request
from loramux_server.metrics import Metrics
from loramux_server.repeats import BYTES, SECONDS, Key, Repeats

Response = generation_pb2.GenerateResponse


def request(request_id: str = "one", prompt: str = "a dog", **fields: Any) -> generation_pb2.GenerateRequest:
    return generation_pb2.GenerateRequest(prompt=prompt, request_id=request_id, **fields)


def ask(hand: ByHand, request: generation_pb2.GenerateRequest, holder: str | None = None) -> asyncio.Task[Response]:
    """A call of a holder; its task has a context of its own, as calls have."""
    callers.answering(Caller("here", holder))
    return asyncio.create_task(hand.service.Generate(request, context()))


def repeated(hand: ByHand, how: str) -> float:
    return hand.metrics.registry.get_sample_value("loramux_repeated_requests_total", {"how": how}) or 0.0


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def test_calls_with_one_id_share_a_job_and_later_ones_get_its_answer() -> None:
    hand = ByHand()
    first = ask(hand, request())
    taken = await hand.until_taken(1)
    second = ask(hand, request())
    await until(lambda: repeated(hand, "joined") == 1)
    taken.finish()
    answers = [await first, await second, await ask(hand, request()), await ask(hand, request(preview_every=3))]
    assert [taken.outcome for taken in hand.taken] == ["done"]
    assert {answer.SerializeToString() for answer in answers} == {answers[0].SerializeToString()}
    assert answers[0].applied.seed == taken.job.seed and answers[0].images[0].data.startswith(b"job-0")
    assert (repeated(hand, "joined"), repeated(hand, "kept")) == (1, 2)


async def test_a_second_call_while_the_first_is_being_admitted_joins_it() -> None:
    hand = ByHand()
    both = [ask(hand, request()), ask(hand, request())]
    (await hand.until_taken(1)).finish()
    one, other = await asyncio.gather(*both)
    assert one == other and len(hand.taken) == 1 and repeated(hand, "joined") == 1


async def test_a_job_ends_when_the_last_of_its_callers_leaves() -> None:
    hand = ByHand()
    first, second = ask(hand, request()), ask(hand, request())
    taken = await hand.until_taken(1)
    await until(lambda: repeated(hand, "joined") == 1)
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled() and not taken.outcome, "the second waits for it"
    second.cancel()
    await asyncio.wait([second])
    assert second.cancelled() and taken.outcome == "cancelled"
    third = ask(hand, request())
    (await hand.until_taken(2)).finish()
    assert (await third).applied.seed == hand.taken[1].job.seed != taken.job.seed


async def test_who_began_it_may_leave() -> None:
    hand = ByHand()
    first, second = ask(hand, request()), ask(hand, request())
    taken = await hand.until_taken(1)
    first.cancel()
    await asyncio.wait([first])
    taken.finish()
    assert (await second).applied.seed == taken.job.seed and len(hand.taken) == 1


async def test_failures_are_told_to_all_who_wait_and_not_kept() -> None:
    hand = ByHand()
    both = [ask(hand, request()), ask(hand, request())]
    (await hand.until_taken(1)).fail(PictureFailed("it is non-finite"))
    for call in both:
        with pytest.raises(PictureFailed):
            await call
    hand.refusals.append(Busy("full", 1.0))
    with pytest.raises(Busy):
        await ask(hand, request())
    again = ask(hand, request())
    (await hand.until_taken(2)).finish()
    assert (await again).images


@pytest.mark.parametrize("ended", [False, True])
async def test_another_request_under_the_id_is_refused(ended: bool) -> None:
    hand = ByHand()
    first = ask(hand, request())
    taken = await hand.until_taken(1)
    if ended:
        taken.finish()
        await first
    with pytest.raises(InvalidRequest) as caught:
        await ask(hand, request(prompt="a cat"))
    assert [violation.field for violation in caught.value.violations] == ["request_id"]
    taken.finish()
    assert await ask(hand, request()) == await first and len(hand.taken) == 1


async def test_ids_are_each_callers_own_and_calls_without_one_are_never_shared() -> None:
    hand = ByHand()
    calls = [ask(hand, request(), "ann"), ask(hand, request(), "bob"), ask(hand, request()), ask(hand, request("two"))]
    calls += [ask(hand, request("")), ask(hand, request(""))]
    await hand.until_taken(6)
    for taken in hand.taken:
        taken.finish()
    assert len({(await call).applied.seed for call in calls}) == 6


@pytest.mark.parametrize("wrong", ["a b", "x" * 65, "ä", "a\n", "{}"])
async def test_an_id_of_another_form_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidRequest, match=r"request_id: is .*, expected 1 to 64 of A-Z"):
        await ask(ByHand(), request(wrong))


async def test_an_image_counts_as_part_of_the_request() -> None:
    hand = ByHand()
    first, second = ask(hand, request(image=b"picture")), ask(hand, request(image=b"picture"))
    (await hand.until_taken(1)).finish()
    assert await first == await second
    with pytest.raises(InvalidRequest, match="request_id"):
        await ask(hand, request(image=b"pictures"))


async def test_a_shared_job_is_charged_once() -> None:
    hand, meter = ByHand(), Meter(Holder("x", frozenset(), Limits(cost_per_minute=1000, concurrent_images=1)))
    callers.answering(Caller("here", "x", meter=meter))
    calls = [asyncio.create_task(hand.service.Generate(request(), context())) for _ in range(3)]
    taken = await hand.until_taken(1)
    await until(lambda: repeated(hand, "joined") == 2)
    with pytest.raises(OverLimit, match="at once"):
        await hand.service.Generate(request("two"), context())
    taken.step(*range(1, 11))
    taken.finish()
    await asyncio.gather(*calls)
    await hand.service.Generate(request(), context())
    assert meter._cost is not None
    assert 1000 - meter._cost._held == pytest.approx(cost_of(taken.job), rel=1e-3)  # it fills while the test runs


async def test_a_failure_that_comes_as_the_last_one_leaves_is_nobodys() -> None:
    """asyncio says so of one that nobody has looked at."""
    complaints, fails, loop = list[str](), asyncio.Event(), asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, told: complaints.append(told["message"]))

    async def draw() -> bytes:
        await fails.wait()
        raise PictureFailed("no")

    call = asyncio.create_task(Repeats[bytes](len, Metrics()).answer(Key(None, "x"), b"digest", draw))
    for _ in range(5):
        await asyncio.sleep(0)
    fails.set()
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    del call
    gc.collect()
    assert complaints == []


# What is kept.


class Shop:
    """Answers are bytes of any size, without end."""

    def __init__(self) -> None:
        self.now, self.drawn = 0.0, 0
        self.repeats = Repeats[bytes](len, Metrics(), lambda: self.now)

    async def ask(self, name: str, size: int = 1) -> bytes:
        async def draw() -> bytes:
            self.drawn += 1
            return bytes([self.drawn]) * size

        return await self.repeats.answer(Key(None, name), b"digest", draw)

    def held(self) -> int:
        assert self.repeats._bytes == sum(kept.size for kept in self.repeats._kept.values())
        return self.repeats._bytes


async def test_answers_are_kept_for_a_while_after_they_were_last_asked_for() -> None:
    shop = Shop()
    first = await shop.ask("x")
    for _ in range(3):
        shop.now += SECONDS - 1
        assert await shop.ask("x") == first
    shop.now += SECONDS
    await shop.ask("another")
    assert len(shop.repeats._kept) == 1, "what is too old goes when anybody asks"
    assert await shop.ask("x") != first


async def test_answers_left_longest_ago_make_room() -> None:
    shop = Shop()
    third = BYTES // 3 - 2048
    a, b = await shop.ask("a", third), await shop.ask("b", third)
    await shop.ask("c", third)
    assert await shop.ask("a") == a and shop.held() <= BYTES
    await shop.ask("d", third)
    assert await shop.ask("a") == a and shop.drawn == 4
    assert await shop.ask("b", third) != b and shop.drawn == 5 and shop.held() <= BYTES


async def test_an_answer_that_is_larger_than_the_room_is_not_kept() -> None:
    shop = Shop()
    small = await shop.ask("small")
    await shop.ask("large", BYTES)
    assert await shop.ask("small") == small, "and puts out no other"
    assert len(shop.repeats._kept) == 1


async def test_small_answers_have_a_bound_in_number() -> None:
    shop = Shop()
    await shop.ask("empty", 0)
    assert 0 < BYTES // shop.held() <= 100_000


# Any interleaving.


IDS, PROMPTS = ("x", "y"), ("a dog", "a cat")
STEPS = st.one_of(
    st.tuples(st.just("call"), st.sampled_from(IDS), st.sampled_from((*PROMPTS[:1] * 3, PROMPTS[1]))),
    st.tuples(st.sampled_from(("leave", "finish", "fail")), st.integers(0, 9)),
    st.tuples(st.just("refuse")),
)
SCHEDULES = st.lists(st.tuples(STEPS, st.integers(0, 12)), max_size=25)
"""Steps with the turns of the loop after each: from none, so that things meet, to enough for all to have settled."""


@dataclass
class Call:
    request_id: str
    prompt: str
    task: asyncio.Task[Response]
    left: bool = False


@dataclass
class Story:
    """What happened to a service whose admission takes a turn of the loop and no thread. of: id and prompt of a job."""

    hand: ByHand = field(default_factory=ByHand)
    calls: list[Call] = field(default_factory=list[Call])
    of: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])

    def __post_init__(self) -> None:
        async def admit(asked: generation_pb2.GenerateRequest) -> Any:
            await asyncio.sleep(0)
            job = self.hand.admit(generation_request(asked))
            self.of[job.id] = asked.request_id, asked.prompt
            return job

        self.hand.service._admit = admit  # type: ignore[method-assign]
        callers.answering(Caller("here", None))

    def living(self) -> list[Taken]:
        return [taken for taken in self.hand.taken if not taken.outcome]

    def do(self, what: str, *rest: Any) -> None:
        match what:
            case "call":
                asked = request(*rest)
                task = asyncio.create_task(self.hand.service.Generate(asked, context()))
                self.calls.append(Call(*rest, task))
            case "leave" if self.calls:
                leaving = self.calls[rest[0] % len(self.calls)]
                leaving.left |= leaving.task.cancel()
            case "finish" | "fail" if living := self.living():
                taken = living[rest[0] % len(living)]
                taken.finish() if what == "finish" else taken.fail(PictureFailed("no"))
            case "refuse":
                self.hand.refusals.append(Busy("full", 1.0))
            case _:
                pass

    def check(self) -> None:
        """Of a request no two jobs run at once."""
        running = [self.of[taken.job.id] for taken in self.living()]
        assert len(running) == len({request_id for request_id, _ in running})

    async def settle(self) -> None:
        """Ends what is left, and waits for everybody."""
        self.hand.refusals.clear()
        async with asyncio.timeout(10):
            while not all(call.task.done() for call in self.calls):
                for taken in self.living():
                    taken.finish()
                await asyncio.sleep(0)


async def tell(steps: list[tuple[tuple[Any, ...], int]]) -> None:
    """Whatever happens, all who are answered under an id get the same, it is drawn no oftener than that takes, and
    nothing is left of anybody."""
    story = Story()
    for (what, *rest), turns in steps:
        story.do(what, *rest)
        for _ in range(turns):
            story.check()
            await asyncio.sleep(0)
    await story.settle()
    answers = dict[str, set[bytes]]()
    for number, call in enumerate(story.calls):
        if call.task.cancelled():
            assert call.left, "nobody else ends a call"
        else:
            asked_before = {c.prompt for c in story.calls[:number] if c.request_id == call.request_id}
            match call.task.exception():
                case None:
                    answer = call.task.result()
                    assert story.of[answer.images[0].data.split()[0].decode()] == (call.request_id, call.prompt)
                    answers.setdefault(call.request_id, set()).add(answer.SerializeToString())
                case InvalidRequest():
                    assert asked_before - {call.prompt}, "nobody asked for anything else"
                case error:
                    assert isinstance(error, Busy | PictureFailed)
    assert all(len(different) == 1 for different in answers.values())
    repeats = story.hand.service._repeats
    assert {key.request_id for key in repeats._kept} >= answers.keys()
    assert not repeats._drawings and not story.living() and asyncio.all_tasks() == {asyncio.current_task()}
    for request_id in IDS:
        drawn = sum(taken.outcome == "done" and story.of[taken.job.id][0] == request_id for taken in story.hand.taken)
        left = sum(call.task.cancelled() and call.request_id == request_id for call in story.calls)
        assert (request_id in answers) <= drawn <= (request_id in answers) + left, "more only where nobody waited"


CALL, LEAVE = ("call", "x", "a dog"), ("leave", 0)


@settings(max_examples=80)
@given(steps=SCHEDULES)
@example([(CALL, 12), (LEAVE, 0)])
@example([(CALL, 12), (CALL, 12), (LEAVE, 0)])
@example([(CALL, 12), (LEAVE, 0), (CALL, 12), (CALL, 12)])
@example([(CALL, 12), (LEAVE, 1), (CALL, 12), (CALL, 12)])
def test_any_interleaving(steps: list[tuple[tuple[Any, ...], int]]) -> None:
    asyncio.run(tell(steps))


@pytest.mark.long
@pytest.mark.timeout(1200)
@settings(max_examples=10_000)
@given(steps=SCHEDULES)
def test_any_interleaving_for_long(steps: list[tuple[tuple[Any, ...], int]]) -> None:
    asyncio.run(tell(steps))
