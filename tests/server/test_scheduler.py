"""The scheduler alone: every promise of docs/scheduling.md, on random histories and on a simulated clock."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux_server.bench.scheduling import fair_shares, load, simulate
from loramux_server.engine.row_budget import MOST_ROWS
from loramux_server.engine.waiting_line import HITS_PAST, LOADS_PAST
from loramux_server.errors import Busy, TooLate
from loramux_server.fairness import HELD_BACK, Accounts, Claim, fill, shares
from loramux_server.requests import ImageKey, Priority
from loramux_server.scheduler import WEIGHTS, Item, Plan, Scheduler
from loramux_server.speed import Speed

SMALL, LARGE = (8, 8), (16, 16)
AREA = 64


def up_to(rows: int) -> Callable[[int], int]:
    return lambda _area: rows


class Machine:
    """A scheduler and a device whose forwards take `forward` seconds and one for every 64 cost, on its own clock."""

    def __init__(self, max_rows: int, max_images: int = 1000, forward: float = 0.0) -> None:
        self.now = 0.0
        self.forward = forward
        self.scheduler = Scheduler(max_images, up_to(max_rows), lambda: self.now)
        self.left: dict[ImageKey, int] = {}
        self.done: dict[str, float] = {}

    def take_in(
        self,
        job: str,
        pictures: int = 1,
        steps: int = 100,
        bucket: tuple[int, int] = SMALL,
        rows: int = 2,
        priority: Priority = Priority.NORMAL,
        seconds_left: float | None = None,
        ready: bool = True,
    ) -> int:
        new = [Item(ImageKey(job, index), bucket, rows, steps, priority) for index in range(pictures)]
        position = self.scheduler.submit(new, seconds_left)
        self.left |= {item.key: steps for item in new}
        if ready:
            self.scheduler.ready([item.key for item in new])
        return position

    def tick(self) -> Plan | None:
        plan = self.scheduler.plan()
        if plan is not None:
            seconds = self.forward + plan.rows * plan.area / AREA
            self.now += seconds
            self.scheduler.stepped(plan, seconds)
            for key in plan.keys:
                self.left[key] -= 1
                if self.left[key] == 0:
                    self._finish(key)
        return plan

    def _finish(self, key: ImageKey) -> None:
        del self.left[key]
        self.scheduler.finish([key])
        self.scheduler.remove([key])
        if not any(other.job == key.job for other in self.left):
            self.done[key.job] = self.now

    def ticks(self, count: int) -> list[Counter[str]]:
        """How many pictures of each job stepped, tick by tick."""
        plans = [self.tick() for _ in range(count)]
        return [Counter(key.job for key in plan.keys) for plan in plans if plan is not None]

    def run(self) -> None:
        while self.tick() is not None:
            pass


# the queue


def test_a_full_queue_takes_nothing_of_a_job() -> None:
    machine = Machine(max_rows=4, max_images=3)
    assert machine.take_in("a", 2) == 0
    with pytest.raises(Busy, match="2 pictures are queued, at most 3"):
        machine.take_in("b", 2)
    assert machine.take_in("c", 1) == 2


def test_a_picture_counts_until_it_is_delivered_but_stands_before_nobody_once_drawn() -> None:
    scheduler = Machine(max_rows=4, max_images=2).scheduler
    key = ImageKey("a", 0)
    scheduler.submit([Item(key, SMALL, 2, 1)])
    scheduler.ready([key])
    scheduler.finish([key])
    assert scheduler.plan() is None and (scheduler.waiting, scheduler.running) == (0, 0)
    assert scheduler.submit([Item(ImageKey("b", 0), SMALL, 2, 1)]) == 0
    with pytest.raises(Busy):
        scheduler.submit([Item(ImageKey("c", 0), SMALL, 2, 1)])
    scheduler.remove([key])
    assert scheduler.submit([Item(ImageKey("c", 0), SMALL, 2, 1)]) == 1


def test_a_full_queue_says_when_there_is_room_at_the_speed_measured() -> None:
    machine = Machine(max_rows=4, max_images=2)
    machine.take_in("a", 2, steps=101)
    machine.ticks(1)
    with pytest.raises(Busy) as caught:
        machine.take_in("b")
    assert caught.value.retry_after == 1.0, "the first forward says nothing"
    machine.ticks(50)
    with pytest.raises(Busy) as caught:  # 50 steps of 4 rows are left, a second a row; one of two pictures must go
        machine.take_in("b")
    assert caught.value.retry_after == pytest.approx(100)


def test_nothing_to_do_is_no_plan() -> None:
    machine = Machine(max_rows=4)
    assert machine.tick() is None
    machine.take_in("a")
    machine.scheduler.remove([ImageKey("a", 0)])
    assert machine.tick() is None


def test_a_picture_that_is_not_ready_is_passed_over() -> None:
    machine = Machine(max_rows=4)
    machine.take_in("loading", ready=False)
    machine.take_in("ready")
    assert machine.ticks(2) == [Counter(ready=1)] * 2
    assert (machine.scheduler.waiting, machine.scheduler.running) == (1, 1)
    machine.scheduler.ready([ImageKey("loading", 0)])
    assert machine.ticks(1) == [Counter(loading=1, ready=1)]


# shares of a forward


def test_a_large_request_does_not_hold_back_a_small_one_that_comes_later() -> None:
    """Before anything is measured, forwards are full, and both are in every one of them."""
    machine = Machine(max_rows=16)
    machine.take_in("sixteen", 16, steps=50)
    machine.take_in("one", steps=20)
    assert machine.ticks(2) == [Counter(sixteen=7, one=1)] * 2


def test_forwards_are_small_beside_a_small_request_where_large_ones_gain_nothing() -> None:
    machine = Machine(max_rows=16)
    machine.take_in("sixteen", 16, steps=50)
    assert machine.ticks(3) == [Counter(sixteen=8)] * 3
    machine.take_in("one", steps=20)
    assert machine.ticks(20) == [Counter(sixteen=2, one=1)] * 20, "a step is due to it every 4 rows, and comes every 6"


def test_forwards_are_no_larger_than_gains_anything() -> None:
    """Nobody else is there, but whoever came next would wait; once a minute it is seen whether that is still so."""
    machine = Machine(max_rows=16)
    machine.take_in("one", steps=3)
    machine.run()
    machine.take_in("sixteen", 16, steps=50)
    stepped = [plan["sixteen"] for plan in machine.ticks(90)]
    assert stepped[:2] == [2, 2] and 3 <= stepped.count(2) <= 6 and set(stepped) == {1, 2}


def test_a_measurement_after_a_minute_takes_the_place_of_the_old() -> None:
    """The machine may have been busy with something else then."""
    machine = Machine(max_rows=2)
    speed = Speed(lambda: machine.now)
    for now, seconds in ((0.0, 9.0), (1.0, 9.0), (62.0, 1.0)):
        machine.now = now
        speed.measured(area=64, rows=2, seconds=seconds)
    assert speed.seconds(area=64, rows=2, cost=128) == pytest.approx(1.0)


def test_forwards_grow_as_long_as_that_gains_anything() -> None:
    machine = Machine(max_rows=16, forward=16)
    machine.take_in("one", steps=3)
    machine.run()
    machine.take_in("sixteen", 16, steps=50)
    assert [plan["sixteen"] for plan in machine.ticks(9)] == [2, 2, 4, 4, 8, 8, 8, 8, 8]


def test_forwards_are_full_where_that_makes_rows_cheaper() -> None:
    machine = Machine(max_rows=16, forward=16)
    machine.take_in("sixteen", 16, steps=50)
    machine.ticks(3)
    machine.take_in("one", steps=20)
    for small in (2, 3):  # whether it does must be seen, twice for every size: the first forward of one warms up
        assert machine.ticks(2) == [Counter(sixteen=small, one=1)] * 2
    assert machine.ticks(16) == [Counter(sixteen=7, one=1)] * 16


def test_a_forward_is_no_longer_than_a_small_request_of_another_size_can_bear() -> None:
    machine = Machine(max_rows=16)
    machine.take_in("large", 8, steps=100, bucket=LARGE)
    machine.ticks(3)
    machine.take_in("small", steps=10)
    machine.run()
    assert machine.done["small"] <= 3 * 64 + 2 * 10 * 2 + 8, "a share of one half, and a forward"


def test_a_machine_that_was_empty_is_not_paid_back_for() -> None:
    machine = Machine(max_rows=8)
    machine.take_in("early", 4, steps=1000)
    machine.ticks(100)
    machine.take_in("late", 4)
    assert machine.ticks(10) == [Counter(early=2, late=2)] * 10


def test_pictures_of_a_request_run_in_order() -> None:
    machine = Machine(max_rows=4)
    machine.take_in("a", 3, steps=2)
    plan = machine.tick()
    assert plan is not None and plan.keys == (ImageKey("a", 0), ImageKey("a", 1))


def test_single_rows_fill_what_pairs_leave() -> None:
    machine = Machine(max_rows=5)
    machine.take_in("pairs", 4)
    machine.take_in("singles", 4, rows=1)
    assert all(counts["pairs"] * 2 + counts["singles"] == 5 for counts in machine.ticks(20))


def test_priorities_share_a_forward_by_weight() -> None:
    assert WEIGHTS == {Priority.INTERACTIVE: 4, Priority.NORMAL: 1, Priority.BATCH: 0.25}
    machine = Machine(max_rows=2)
    for priority in Priority:
        machine.take_in(priority, 2, steps=1000, priority=priority)
    got = sum(machine.ticks(420), Counter[str]())
    assert all(abs(got[priority] - WEIGHTS[priority] * 80) <= 2 for priority in Priority), got


def test_a_stream_of_newcomers_starves_nobody() -> None:
    """Each fills the forward, is of a higher priority than the first, and is followed by the next at its end."""
    machine = Machine(max_rows=4)
    machine.take_in("patient", 2, steps=10, priority=Priority.BATCH)
    for number in range(180):  # 17 parts, of which one is the first's: 10 forwards of it take 170
        machine.take_in(f"new-{number}", 2, steps=1, priority=Priority.INTERACTIVE)
        while f"new-{number}" not in machine.done:
            machine.tick()
    assert "patient" in machine.done


# turns of buckets


def test_buckets_are_shared_between_by_cost() -> None:
    machine = Machine(max_rows=4)
    machine.take_in("small", 2, steps=1000, bucket=SMALL)
    machine.take_in("large", 2, steps=1000, bucket=LARGE)
    got = sum(machine.ticks(200), Counter[str]())
    assert abs(got["small"] - 4 * got["large"]) <= 16, "a large picture's step costs four small ones"


def test_a_bucket_counts_by_its_requests_and_their_priorities() -> None:
    machine = Machine(max_rows=4)
    machine.take_in("one", 2, steps=1000)
    for number in range(3):
        machine.take_in(f"of three {number}", 2, steps=1000, bucket=(4, 16))
    machine.take_in("first", 2, steps=1000, bucket=(2, 32), priority=Priority.INTERACTIVE)
    got = sum(machine.ticks(800), Counter[str]())
    got = Counter({job: round(800 * count / got.total()) for job, count in got.items()})
    assert abs(got["one"] - 100) <= 2 and abs(got["first"] - 400) <= 2
    assert all(abs(got[f"of three {number}"] - 100) <= 2 for number in range(3))


def test_a_stream_of_new_buckets_starves_no_bucket() -> None:
    machine = Machine(max_rows=4)
    machine.take_in("patient", steps=10, priority=Priority.BATCH)
    for number in range(300):
        machine.take_in(f"new-{number}", 2, steps=1, bucket=(2, 32 + number), priority=Priority.INTERACTIVE)
        while f"new-{number}" not in machine.done:
            machine.tick()
    assert "patient" in machine.done


# deadlines


def measured(max_rows: int = 4) -> Machine:
    """A machine that knows its speed at two and four rows of the small bucket and two of the large one."""
    machine = Machine(max_rows)
    for job, pictures, bucket in (("a", 1, SMALL), ("b", 2, SMALL), ("c", 1, LARGE)):
        machine.take_in(job, pictures, steps=3, bucket=bucket)
        machine.run()
    return machine


def test_an_unknown_speed_turns_nobody_away() -> None:
    Machine(max_rows=4).take_in("a", seconds_left=0.001)


def test_a_deadline_that_cannot_be_made_is_told_at_once() -> None:
    machine = measured()
    machine.take_in("alone", steps=10, seconds_left=20.1)
    with pytest.raises(TooLate, match=r"at least 40\.0 s beside 1 pictures, the deadline is in 39\.9 s") as caught:
        machine.take_in("beside", steps=10, seconds_left=39.9)
    assert caught.value.seconds == pytest.approx(40)
    assert machine.scheduler.waiting + machine.scheduler.running == 1, "it left something behind"
    machine.take_in("beside", steps=10, seconds_left=40.1)


def test_the_estimate_counts_priorities_and_what_others_have_left() -> None:
    machine = measured(max_rows=2)
    machine.take_in("long", steps=1000)
    with pytest.raises(TooLate) as caught:  # 10 steps of two rows, and as many of the other
        machine.take_in("normal", steps=10, seconds_left=1)
    assert caught.value.seconds == pytest.approx(40)
    with pytest.raises(TooLate) as caught:
        machine.take_in("interactive", steps=10, seconds_left=1, priority=Priority.INTERACTIVE)
    assert caught.value.seconds == pytest.approx(25)
    with pytest.raises(TooLate) as caught:  # a step of the large bucket costs four
        machine.take_in("large", steps=10, bucket=LARGE, seconds_left=1)
    assert caught.value.seconds == pytest.approx(160)


def test_a_forward_is_never_taken_for_longer_than_it_was_seen_to_be() -> None:
    """Only two rows at a time were measured: four might take no longer, so ten steps might take 20 s."""
    machine = Machine(max_rows=4)
    machine.take_in("a", steps=3)
    machine.run()
    machine.take_in("b", steps=10)
    machine.take_in("c", steps=10, seconds_left=20.1)


def test_an_old_measurement_turns_nobody_away() -> None:
    machine = measured()
    with pytest.raises(TooLate):
        machine.take_in("a", seconds_left=1)
    machine.now += 61
    machine.take_in("a", seconds_left=1)


@settings(max_examples=50)
@given(st.data())
def test_what_is_turned_away_could_not_have_made_it(data: st.DataObject) -> None:
    """The estimate against a run to the end with nobody coming after: never above it by more than a forward or two."""
    machine = measured(max_rows=6)
    for number in range(data.draw(st.integers(0, 6))):
        machine.take_in(
            str(number),
            data.draw(st.integers(1, 3)),
            data.draw(st.integers(1, 30)),
            data.draw(st.sampled_from([SMALL, LARGE])),
        )
    asked = {"pictures": data.draw(st.integers(1, 3)), "steps": data.draw(st.integers(1, 30))}
    with pytest.raises(TooLate) as caught:
        machine.take_in("new", **asked, seconds_left=0)
    started = machine.now
    machine.take_in("new", **asked)
    machine.run()
    taken = machine.done["new"] - started
    forwards = 6 * 256 / 64  # seconds of the longest: whole forwards are run, shares are not whole
    assert caught.value.seconds <= taken + 2 * forwards
    assert taken <= 3 * caught.value.seconds + 2 * forwards, "the estimate is of no use"


# properties


@given(
    st.floats(1, 64),
    st.lists(
        st.builds(Claim, st.integers(1, 2), st.integers(1, 16), st.sampled_from(list(WEIGHTS.values()))),
        min_size=1,
        max_size=20,
    ),
)
def test_shares_are_max_min_fair(capacity: float, claims: list[Claim]) -> None:
    due = shares(capacity, claims)
    assert sum(due) == pytest.approx(min(capacity, sum(claim.demand for claim in claims)))
    level = max(share / claim.weight for share, claim in zip(due, claims, strict=True))
    for share, claim in zip(due, claims, strict=True):
        assert share <= claim.demand + 1e-9
        assert share == pytest.approx(claim.demand) or share / claim.weight == pytest.approx(level)


def test_credit_decides_who_fills_a_forward() -> None:
    claims = [Claim(2, 3, 1.0), Claim(2, 3, 1.0)]
    assert fill(6, claims, [0, 0]) == [2, 1]
    assert fill(6, claims, [0, 5]) == [0, 3]
    assert fill(20, claims, [-50, 5]) == [3, 3]


def test_accounts_are_not_savings() -> None:
    accounts = Accounts[str]()
    accounts.settle("waits", 3.0, 1.0, served=False)
    accounts.settle("has all it can use", 3.0, 1.0, served=True)
    accounts.settle("had more", 1.0, 3.0, served=True)
    assert [accounts.owed(owner) for owner in ("waits", "has all it can use", "had more", "new")] == [2, 0, -2, 0]
    accounts.keep(["had more"])
    assert [accounts.owed(owner) for owner in ("waits", "had more")] == [0, -2]


@given(st.data())
def test_random_histories(data: st.DataObject) -> None:
    """One bucket and few enough rows a tick; full where more is ready and gains something; nobody ready waits above the
    bound."""
    max_rows = data.draw(st.integers(2, 8))
    machine = Machine(max_rows)
    requests: dict[str, tuple[tuple[int, int], int, float]] = {}
    waited: Counter[str] = Counter()
    fair: Counter[str] = Counter()
    number = 0
    for _ in range(data.draw(st.integers(1, 60))):
        if data.draw(st.booleans()):
            bucket, rows = data.draw(st.sampled_from([SMALL, LARGE])), data.draw(st.integers(1, 2))
            priority = data.draw(st.sampled_from(Priority))
            machine.take_in(
                str(number), data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6)), bucket, rows, priority
            )
            requests[str(number)] = (bucket, rows, WEIGHTS[priority])
            number += 1
        ready = Counter(key.job for key in machine.left)
        gains = {bucket: _gaining(machine, bucket, ready, requests, max_rows) for bucket in (SMALL, LARGE)}
        plan = machine.tick()
        assert (plan is None) == (not ready), "idle though work is ready"
        if plan is None:
            continue
        stepped = Counter(key.job for key in plan.keys)
        assert {requests[job][0] for job in stepped} == {plan.bucket} and len(set(plan.keys)) == len(plan.keys)
        assert plan.rows == sum(requests[job][1] * count for job, count in stepped.items()) <= max_rows
        for job in ready:
            bucket, rows, _ = requests[job]
            if bucket == plan.bucket and stepped[job] < ready[job]:
                enough = max(2, min(_considerate(plan, ready, requests), gains[plan.bucket]))
                assert rows > min(enough, max_rows) - plan.rows, "room was left although work was ready"
        _check_waits(machine, plan, ready, stepped, requests, waited, fair, max_rows)


def _gaining(
    machine: Machine,
    bucket: tuple[int, int],
    ready: Counter[str],
    requests: dict[str, tuple[tuple[int, int], int, float]],
    max_rows: int,
) -> int:
    """Rows above which nothing is gained, as measured."""
    demand = sum(count * requests[job][1] for job, count in ready.items() if requests[job][0] == bucket)
    return machine.scheduler._speed.suffice(bucket[0] * bucket[1], min(demand, max_rows))


def _considerate(plan: Plan, ready: Counter[str], requests: dict[str, tuple[tuple[int, int], int, float]]) -> int:
    """Rows that hold nobody back: cost of half as much again as falls to others while a request's next step is due."""
    total = sum(requests[job][2] for job in ready)
    inside = sum(requests[job][2] for job in ready if requests[job][0] == plan.bucket)
    return int(
        min(
            HELD_BACK * count * requests[job][1] * requests[job][0][0] * requests[job][0][1]
            * (inside if requests[job][0] == plan.bucket else total) / requests[job][2] / plan.area
            for job, count in ready.items()
        )
    )  # fmt: skip


def _check_waits(
    machine: Machine,
    plan: Plan,
    ready: Counter[str],
    stepped: Counter[str],
    requests: dict[str, tuple[tuple[int, int], int, float]],
    waited: Counter[str],
    fair: Counter[str],
    max_rows: int,
) -> None:
    """Cost that ran since a request last stepped: at most what its share makes of three of its steps, and the longest
    forwards of all others."""
    cost = plan.rows * plan.area
    weight = sum(requests[job][2] for job in ready)
    for job in ready:
        waited[job] = 0 if stepped[job] else waited[job] + cost
        fair[job] = max(0 if stepped[job] else fair[job], weight / requests[job][2])
        own = requests[job][1] * requests[job][0][0] * requests[job][0][1]
        assert waited[job] <= 3 * own * fair[job] + 4 * max_rows * 256, "somebody starves"


# a load


@pytest.mark.parametrize(("seed", "max_rows"), [(0, 8), (1, 32), (2, 64)])
@pytest.mark.parametrize("priorities", [(Priority.NORMAL,), tuple(Priority)])
@pytest.mark.parametrize("count", [400, pytest.param(1000, marks=pytest.mark.long)])
def test_nobody_waits_more_than_three_times_its_fair_share_at_80_percent_load(
    seed: int, max_rows: int, priorities: tuple[Priority, ...], count: int
) -> None:
    """Poisson arrivals of mixed sizes, samplers, steps and pictures, against fluid processor sharing."""
    asked = load(count, seed, priorities)
    over = [took / fair for took, fair in zip(simulate(asked, max_rows), fair_shares(asked), strict=True)]
    assert max(over) <= 3


def test_the_ideal_machine_shares_by_weight() -> None:
    """Two requests of one row and 100 steps: one alone for half a second, then both, then the other alone."""
    first = replace(load(1, 0)[0], at=0.0, bucket=(64, 64), pictures=1, rows=1, steps=100)
    assert fair_shares([first, replace(first, at=0.5)]) == pytest.approx([1.5, 1.5])
    assert fair_shares([first, replace(first, at=0.5, priority=Priority.INTERACTIVE)]) == pytest.approx([2.0, 1.25])


# the document


def test_the_documented_promises_name_tests_that_exist_and_the_weights_that_hold() -> None:
    folder = Path(__file__).parent
    text = (folder.parents[1] / "docs" / "scheduling.md").read_text()
    tests = "".join(file.read_text() for file in folder.glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    assert named and [name for name in named if f"def {name}(" not in tests] == []
    weights = {"4": 4.0, "1": 1.0, "a quarter": 0.25}
    told = re.findall(r"`(interactive|normal|batch)` (4|1|a quarter)", text)
    assert {Priority(name): weights[number] for name, number in told} == WEIGHTS
    assert f"beyond {HELD_BACK} times" in text and f"after {LOADS_PAST} requests" in text
    assert f"after {HITS_PAST}, which" in text and f"{MOST_ROWS} at most" in text
