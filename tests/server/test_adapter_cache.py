"""The line for room in the pool: nobody who can go on is held up, and nobody is passed for ever."""

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import Pool, embedding, quickly, version

from loramux_server.engine.compiled_reader import HostAdapter
from loramux_server.engine.device_tier import VECTOR_BYTES, Lease
from loramux_server.engine.rooms import ByteBudget
from loramux_server.engine.waiting_line import HITS_PAST, LOADS_PAST
from loramux_server.errors import Incompatible, PictureFailed, PinTooLarge


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(rows=16)
    yield made
    made.cache.close()


def passed_by(pool: Pool, large: "Future[Lease]", names: list[str], before: "deque[Future[Lease]]") -> int:
    """How many small jobs, two always running, are served until the large one is."""
    for count in range(1000):
        if large.done():
            return count
        future = pool.ask(**{names[count % len(names)]: 4})
        if before:
            pool.release(before.popleft())
        if future.done():
            before.append(future)
    raise AssertionError("it is passed for ever")


def test_a_large_blend_is_passed_by_few_that_must_load(pool: Pool) -> None:
    running = deque([pool.ask(first=4), pool.ask(second=4)])
    large = pool.ask(large=16)
    assert not large.done()
    names = [f"new-{number}" for number in range(1000)]
    assert passed_by(pool, large, names, running) <= LOADS_PAST + 2


def test_a_large_blend_is_passed_by_some_whose_adapters_are_there(pool: Pool) -> None:
    running = deque([pool.ask(a=4), pool.ask(b=4)])
    large = pool.ask(large=16)
    taken = passed_by(pool, large, ["a", "b"], running)
    assert LOADS_PAST < taken <= HITS_PAST + 2


def test_what_is_there_goes_on_while_others_must_wait_behind_the_first(pool: Pool) -> None:
    kept = pool.ask(kept=4)
    large = pool.ask(large=16)
    for number in range(LOADS_PAST):
        passing = pool.ask(**{f"new-{number}": 4})
        assert passing.done(), "it fits and the first has not waited long"
        pool.release(passing)
    behind = pool.ask(other=4)
    assert not behind.done()
    assert pool.ask(kept=4).done()
    assert large.cancel()
    pool.settle()
    assert behind.done() and kept.done(), "the place of one that went away keeps nobody waiting"


def test_one_that_is_still_being_read_is_passed_by_any_number(pool: Pool) -> None:
    """Also by those that must be read themselves."""
    pool.ask(there=4)
    opened = threading.Event()

    def slowly(version: Any) -> HostAdapter:
        assert version.adapter != "slow" or opened.wait(20)
        return quickly(version)

    pool.host.read = slowly
    slow = pool.cache.request([version("slow", 4)])
    assert all(pool.cache.request([version("there", 4)]).done() for _ in range(2 * HITS_PAST))
    for number in range(2 * LOADS_PAST):
        other = pool.cache.request([version(f"other-{number}", 4)])
        pool.cache.release(other.result(20))
    assert not slow.done()
    opened.set()
    slow.result(20)


def test_what_waits_for_room_is_read_but_not_written(pool: Pool) -> None:
    running = pool.ask(a=4)
    large = pool.ask(b=4, c=12)
    assert not large.done() and pool.host.has("b") and pool.host.has("c") and len(pool.written) == 1
    pool.host.read = lambda _: pytest.fail("it was read ahead")
    pool.release(running)
    assert large.done() and len(pool.written) == 3


def test_reading_ahead_stops_where_the_host_is_full() -> None:
    """Two of the five fit; the others are read when it is their turn, and all are served, one after another."""
    pool = Pool(rows=4, host_bytes=800)
    running = pool.ask(running=4)
    jobs = [pool.ask(**{name: 4}) for name in "abcde"]
    assert [pool.host.has(name) for name in "abcde"] == [True, True, False, False, False]
    while jobs:
        pool.release(running)
        (running,) = [job for job in jobs if job.done()]
        jobs.remove(running)
    assert pool.count("adapter_cache_misses_total", tier="host") == 6
    pool.cache.close()


def test_a_host_that_keeps_nothing_still_hands_on() -> None:
    pool = Pool(rows=8, host_bytes=0)
    jobs = [pool.ask(a=4, b=4), pool.ask(c=4)]
    pool.release(jobs[0])
    assert jobs[1].done()
    assert pool.count("adapters_resident", tier="host") == pool.count("adapter_resident_bytes", tier="host") == 0
    pool.cache.close()


def test_a_job_that_is_cancelled_lets_go_of_what_it_had_read_ahead(pool: Pool) -> None:
    pool.ask(running=16)
    waiting = pool.ask(a=4)
    entry = pool.host._entries["a"]
    assert entry.users == 1 and pool.host._entries["running"].users == 0
    assert waiting.cancel()
    assert entry.users == 0 and pool.host.has("a")


def test_every_tier_counts_what_it_has_and_puts_out(pool: Pool) -> None:
    for name in ("a", "b", "a"):
        pool.release(pool.ask(**{name: 16}))
    assert pool.count("adapter_cache_misses_total", tier="device") == 3
    assert pool.count("adapter_cache_misses_total", tier="host") == 2
    assert pool.count("adapter_cache_hits_total", tier="host") == 1
    assert pool.count("adapter_cache_evictions_total", tier="device", reason="room") == 2
    assert pool.count("adapters_resident", tier="device") == 1 and pool.count("adapters_resident", tier="host") == 2
    assert pool.count("adapter_resident_bytes", tier="device") == 16 * 50
    assert pool.count("adapter_resident_bytes", tier="host") == 2 * 16 * 100
    assert pool.count("adapter_load_seconds_count", stage="copy") == 3
    pool.release(pool.ask(a=16))
    assert pool.count("adapter_cache_hits_total", tier="device") == 1
    pool.cache.drop(["a", "b"])
    for tier in ("device", "host"):
        assert pool.count("adapters_resident", tier=tier) == pool.count("adapter_resident_bytes", tier=tier) == 0
        assert pool.count("adapter_cache_evictions_total", tier=tier, reason="deleted") >= 1


def test_what_cannot_be_written_fails_its_job_and_leaves_nothing(pool: Pool) -> None:
    pool.group.write = lambda *_: 1 / 0
    failing = pool.ask(a=4)
    assert isinstance(failing.exception(0), PictureFailed) and "ZeroDivisionError" in str(failing.exception(0))
    assert pool.group.rooms["g"].free == 16 and pool.host._entries["a"].users == 0


def test_a_fault_beside_the_loading_is_heard_too(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.cache.device, "fits", lambda *_: 1 / 0)
    assert isinstance(pool.ask(a=4).exception(20), PictureFailed)
    assert not len(pool.cache._line)


def test_pins_leave_half_of_the_pool(pool: Pool) -> None:
    pool.cache.pin(version("one", 6))
    with pytest.raises(PinTooLarge, match=r"two@1 has total rank 3 in g, and other pins hold 6; expected at most 8"):
        pool.cache.pin(version("two", 3))
    pool.cache.pin(version("two", 2))
    with pytest.raises(Incompatible, match="total rank 9 in g, at most 8 fits beside what is pinned"):
        pool.cache.check([[version("large", 9)]])
    pool.cache.check([[version("one", 6), version("two", 2), version("small", 8)]])
    pool.cache.unpin("one")
    pool.cache.check([[version("large", 9)]])


def test_who_waits_for_more_than_pins_leave_hears_so(pool: Pool) -> None:
    running = pool.ask(a=4)
    hopeless, waiting = pool.ask(large=16), pool.ask(b=10)
    pool.cache.pin(version("one", 4))
    assert isinstance(hopeless.exception(0), Incompatible)
    pool.release(running)
    assert waiting.done() and waiting.exception() is None


def test_embeddings_have_a_bound_of_their_own(pool: Pool) -> None:
    """Neither is put out for the other, and one that is in use is not put out at all."""
    pool.cache.device._vectors = ByteBudget(2 * 96)
    rows = pool.ask(lora=16)
    one, two = pool.ask_for([embedding("one")]), pool.ask_for([embedding("two")])
    assert list(one.result(0).vectors) == ["one"] and list(one.result(0).rows["one"]) == ["bytes of vectors"]
    waiting = pool.ask_for([embedding("three"), version("lora", 16)])
    assert not waiting.done()
    pool.release(two)
    assert waiting.done() and not pool.cache.has("two")
    assert {name: len(each) for name, each in waiting.result(0).vectors.items()} == {"lora": 0, "three": 1}
    for lease in (rows, one, waiting):
        pool.release(lease)
    copied = pool.count("adapter_load_seconds_count", stage="copy")
    again = pool.ask_for([embedding("three"), embedding("one")])
    assert again.done() and copied == 4
    pool.release(again)
    pool.ask(other=16)
    assert pool.ask_for([embedding("three")]).done()
    assert pool.count("adapter_load_seconds_count", stage="copy") == 5, "no vectors were put out for rows"
    pool.cache.evict_unused()
    assert pool.cache.device._vectors.free == 96 and set(pool.cache.device.residents) == {"other", "three"}


def test_a_lora_takes_room_for_what_is_bundled_with_it(pool: Pool) -> None:
    """Rows and vectors come and go together."""
    pool.cache.device._vectors = ByteBudget(3 * 96)
    bundle = pool.ask_for([version("bundle", 4, bundled=2)])
    assert [len(each) for each in bundle.result(0).vectors.values()] == [2]
    assert pool.cache.device._vectors.free == 96 and pool.group.rooms["g"].free == 12
    assert pool.cache.device.residents["bundle"].nbytes == 4 * 50 + 2 * 96
    waiting = pool.ask_for([version("other", 4, bundled=2)])
    assert not waiting.done() and pool.ask_for([version("small", 4, bundled=1)]).done()
    pool.release(bundle)
    assert waiting.done() and not pool.cache.has("bundle")
    with pytest.raises(Incompatible, match="the blend has 384 bytes of vectors, at most 288 fits"):
        pool.cache.check([[version("large", 1, bundled=4)]])
    with pytest.raises(PinTooLarge, match="192 bytes of vectors"):
        pool.cache.pin(version("pinned", 1, bundled=2))


def test_an_embedding_that_cannot_be_read_leaves_nothing(pool: Pool) -> None:
    def failing(version: Any) -> HostAdapter:
        raise OSError("secret")

    pool.host.read = failing
    error = pool.ask_for([embedding("one")]).exception(0)
    assert isinstance(error, PictureFailed) and "secret" not in str(error)
    assert (
        pool.cache.device._vectors.free == VECTOR_BYTES and not pool.cache.device.residents and not pool.host._entries
    )


@settings(max_examples=30)
@given(st.data())
def test_every_job_gets_its_turn(data: st.DataObject) -> None:
    """Random blends, random ends and cancels: when all that run end in turn, everybody was served, rows come back."""
    pool = Pool(rows=16)
    ranks = {"a": 2, "b": 4, "c": 6, "d": 8, "e": 10}
    jobs: list[Future[Lease]] = []
    released: set[int] = set()
    for _ in range(data.draw(st.integers(1, 40))):
        names = data.draw(st.sets(st.sampled_from("abcde"), min_size=1, max_size=3))
        if sum(ranks[name] for name in names) <= 16:
            jobs.append(pool.ask(**{name: ranks[name] for name in names}))
        if jobs and data.draw(st.booleans()):
            index = data.draw(st.integers(0, len(jobs) - 1))
            if jobs[index].done() and index not in released:
                pool.release(jobs[index])
                released.add(index)
            elif not jobs[index].done() and data.draw(st.booleans()):
                jobs[index].cancel()
                released.add(index)
                pool.settle()
    for _ in jobs:
        for index, job in enumerate(jobs):
            if job.done() and index not in released:
                pool.release(job)
                released.add(index)
    pool.cache.close()
    assert all(job.done() for job in jobs), "somebody waits for ever"
    assert not len(pool.cache._line) and all(r.users == 0 for r in pool.cache.device.residents.values())
