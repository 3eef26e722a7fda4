"""The scheduler alone: every promise of its docstring, on random histories."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.errors import Busy
from loramux_server.requests import ImageKey
from loramux_server.scheduler import Item, Scheduler

SMALL, LARGE = (8, 8), (16, 16)


def items(job: str, count: int, bucket: tuple[int, int] = SMALL, rows: int = 2) -> list[Item]:
    return [Item(ImageKey(job, index), bucket, rows) for index in range(count)]


def take_in(scheduler: Scheduler, job: str, count: int, bucket: tuple[int, int] = SMALL, rows: int = 2) -> None:
    new = items(job, count, bucket, rows)
    scheduler.submit(new)
    scheduler.ready([item.key for item in new])


def jobs(scheduler: Scheduler) -> list[str]:
    plan = scheduler.plan()
    return [] if plan is None else [key.job for key in plan.keys]


def test_pictures_join_in_the_order_they_came_up_to_the_rows_of_a_forward() -> None:
    scheduler = Scheduler(max_images=10, max_rows=5)
    for job in "abc":
        take_in(scheduler, job, 1)
    take_in(scheduler, "d", 1, rows=1)
    assert jobs(scheduler) == ["a", "b", "d"]
    scheduler.remove([ImageKey("a", 0)])
    assert jobs(scheduler) == ["b", "c", "d"]


def test_buckets_take_turns() -> None:
    scheduler = Scheduler(max_images=10, max_rows=4)
    take_in(scheduler, "small", 2, SMALL)
    take_in(scheduler, "large", 2, LARGE)
    assert [set(jobs(scheduler)) for _ in range(4)] == [{"small"}, {"large"}, {"small"}, {"large"}]


def test_a_picture_that_is_not_ready_is_passed_over() -> None:
    scheduler = Scheduler(max_images=10, max_rows=4)
    scheduler.submit(items("loading", 1))
    take_in(scheduler, "ready", 1)
    assert jobs(scheduler) == ["ready"]
    assert (scheduler.waiting, scheduler.running) == (1, 1)
    scheduler.ready([ImageKey("loading", 0)])
    assert jobs(scheduler) == ["loading", "ready"]


def test_a_full_queue_takes_nothing_of_a_job() -> None:
    scheduler = Scheduler(max_images=3, max_rows=4)
    assert scheduler.submit(items("a", 2)) == 0
    with pytest.raises(Busy, match="2 pictures are queued, at most 3"):
        scheduler.submit(items("b", 2))
    assert scheduler.submit(items("c", 1)) == 2


def test_a_picture_counts_until_it_is_delivered() -> None:
    scheduler = Scheduler(max_images=1, max_rows=4)
    take_in(scheduler, "a", 1)
    scheduler.finish([ImageKey("a", 0)])
    assert scheduler.plan() is None and (scheduler.waiting, scheduler.running) == (0, 0)
    with pytest.raises(Busy):
        scheduler.submit(items("b", 1))
    scheduler.remove([ImageKey("a", 0)])
    assert scheduler.submit(items("b", 1)) == 0


def test_nothing_to_do_is_no_plan() -> None:
    scheduler = Scheduler(max_images=3, max_rows=4)
    assert scheduler.plan() is None
    take_in(scheduler, "a", 1)
    scheduler.remove([ImageKey("a", 0)])
    assert scheduler.plan() is None


def test_a_forward_must_hold_a_guided_picture() -> None:
    with pytest.raises(ValueError, match="max_rows 1, expected at least 2"):
        Scheduler(max_images=3, max_rows=1)


@given(st.data())
def test_random_histories(data: st.DataObject) -> None:
    """One bucket and few enough rows a tick; full where more is ready; every ready picture steps in the end."""
    max_rows = data.draw(st.integers(2, 8))
    scheduler = Scheduler(max_images=50, max_rows=max_rows)
    left: dict[ImageKey, int] = {}
    known: dict[ImageKey, Item] = {}
    for number in range(data.draw(st.integers(1, 12))):
        bucket, rows = data.draw(st.sampled_from([SMALL, LARGE])), data.draw(st.integers(1, 2))
        new = items(str(number), data.draw(st.integers(1, 3)), bucket, rows)
        scheduler.submit(new)
        scheduler.ready([item.key for item in new])
        for item in new:
            left[item.key], known[item.key] = data.draw(st.integers(1, 4)), item
    ticks = 0
    bound = sum(left.values()) + 1
    while left:
        plan = scheduler.plan()
        assert plan is not None, "work is left"
        chosen = [known[key] for key in plan.keys]
        used = sum(item.rows for item in chosen)
        assert len({item.bucket for item in chosen}) == 1 and len(set(plan.keys)) == len(plan.keys)
        assert used <= max_rows
        passed = [known[key] for key in left if known[key].bucket == chosen[0].bucket and key not in plan.keys]
        assert all(item.rows > max_rows - used for item in passed), "room was left although work was ready"
        for key in plan.keys:
            left[key] -= 1
            if left[key] == 0:
                del left[key]
                scheduler.remove([key])
        ticks += 1
        assert ticks <= bound, "somebody starves"
    assert scheduler.plan() is None
