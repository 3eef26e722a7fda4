"""Host memory: one read for all, a budget that what is held alone may exceed, and nothing remembered of a failure."""

import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import ROW_BYTES, quickly, settle, version

from loramux_server.engine.compiled_reader import HostAdapter
from loramux_server.engine.host_tier import READERS, HostEntry, HostTier
from loramux_server.errors import Draining, PictureFailed, PinTooLarge
from loramux_server.metrics import Metrics
from loramux_store.errors import DataLoss

BUDGET = 10 * ROW_BYTES


@pytest.fixture
def host() -> Iterator[HostTier]:
    tier = HostTier(quickly, BUDGET, Metrics())
    yield tier
    tier.close()


def keep(host: HostTier, name: str, rank: int = 4) -> None:
    """Has it read and leaves it."""
    entry = host.hold(version(name, rank))
    entry.future.result(20)
    host.release(entry)
    settle(host)


def sample(host: HostTier, name: str, **labels: str) -> float:
    return host._metrics.registry.get_sample_value(f"loramux_{name}", {"tier": "host", **labels}) or 0.0


def test_the_one_left_longest_ago_goes_first(host: HostTier) -> None:
    for name in ("a", "b", "a", "c"):
        keep(host, name)
    assert [host.has(name) for name in "abc"] == [True, False, True]
    assert sample(host, "adapter_cache_evictions_total", reason="room") == 1
    assert sample(host, "adapter_resident_bytes") == 8 * ROW_BYTES
    assert sample(host, "adapter_cache_budget_bytes") == BUDGET


def test_one_larger_than_the_budget_is_used_and_not_kept(host: HostTier) -> None:
    keep(host, "a")
    entry = host.hold(version("large", 11))
    assert len(entry.future.result(20).factors["p"].parts["a"]) == 11
    host.release(entry)
    settle(host)
    assert not host.has("large") and sample(host, "adapter_resident_bytes") == 0


def test_what_is_held_stays_and_what_is_read_ahead_needs_room(host: HostTier) -> None:
    held = [host.hold(version(name, 4)) for name in "ab"]
    assert host.prefetch(version("c", 4)) is None
    assert host.prefetch(version("a", 4)) is held[0], "it is there whoever asks"
    keep(host, "c")
    assert not host.has("c") and host.has("a") and host.has("b")
    host.release(held[1])
    ahead = host.prefetch(version("c", 4))
    assert ahead is not None
    ahead.future.result(20)
    settle(host)
    assert host.has("a") and not host.has("b")


def test_several_are_read_at_once_and_each_once() -> None:
    """Every reader waits for all the others, and eight threads want the same versions."""
    together, reads = threading.Barrier(READERS), Counter[str]()

    def read(version: Any) -> HostAdapter:
        reads[version.digest] += 1
        together.wait(20)
        return quickly(version)

    host = HostTier(read, 1 << 20, Metrics())
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(host.hold, version(f"{number}", 4)) for _ in range(8) for number in range(READERS)]
        found = [each.result(20).future.result(20) for each in asked]
    assert reads == {f"{number}": 1 for number in range(READERS)}
    assert len({id(adapter) for adapter in found}) == READERS
    host.close()


def test_a_read_that_fails_fails_those_who_wait_and_is_not_remembered(host: HostTier) -> None:
    def failing(version: Any) -> HostAdapter:
        raise KeyError("secret")

    host.read = failing
    entries = [host.hold(version("a", 4)) for _ in range(2)]
    for entry in entries:
        error = entry.future.exception(20)
        assert isinstance(error, PictureFailed) and str(error) == "adapter a@1 could not be loaded: KeyError"
    host.read = quickly
    again = host.hold(version("a", 4))
    assert again.future.result(20)
    for entry in (*entries, again):
        host.release(entry)
    settle(host)
    assert host.has("a") and host._held_bytes == 0 and host._bytes == 4 * ROW_BYTES


def test_the_store_says_itself_what_is_wrong(host: HostTier) -> None:
    def damaged(version: Any) -> HostAdapter:
        raise DataLoss("ab", "cut off")

    host.read = damaged
    error = host.hold(version("a", 4)).future.exception(20)
    assert isinstance(error, DataLoss) and "adapter a@1 cannot be loaded" in str(error)


def test_what_nobody_waits_for_any_more_is_not_read() -> None:
    opened, reads = threading.Event(), list[str]()

    def slowly(version: Any) -> HostAdapter:
        reads.append(version.digest)
        assert opened.wait(20)
        return quickly(version)

    host = HostTier(slowly, 1 << 20, Metrics())
    running = [host.hold(version(f"{number}", 4)) for number in range(READERS)]
    given_up, wanted = host.hold(version("given up", 4)), [host.hold(version("wanted", 4)) for _ in range(2)]
    host.release(given_up)
    host.release(wanted[0])
    host.release(running[0])
    opened.set()
    wanted[1].future.result(20)
    settle(host)
    assert "given up" not in reads and "wanted" in reads
    assert host.has("0"), "a read that has begun is of use to the next"
    assert host._bytes == (READERS + 1) * 4 * ROW_BYTES
    host.close()


def test_pins_leave_half_of_the_budget(host: HostTier) -> None:
    host.pin(version("a", 3))
    host.pin(version("a", 3))
    with pytest.raises(PinTooLarge, match=r"b@1 has 300 bytes in host memory, and other pins hold 300; .* most 500"):
        host.pin(version("b", 3))
    host.unpin("a")
    host.pin(version("b", 3))


def test_a_closed_tier_takes_nothing(host: HostTier) -> None:
    host.close()
    assert host.prefetch(version("a", 4)) is None
    with pytest.raises(Draining):
        host.hold(version("a", 4))


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.booleans())
def test_under_many_threads_the_budget_is_kept_and_so_is_what_is_held(seed: int, failing: bool) -> None:
    reading, twice, broken = Counter[str](), list[str](), list[str]()
    lock = threading.Lock()

    def read(version: Any) -> HostAdapter:
        with lock:
            reading[version.digest] += 1
            if reading[version.digest] > 1:
                twice.append(version.digest)
        try:
            if failing and version.digest in "bd":
                raise OSError
            return quickly(version)
        finally:
            with lock:
                reading[version.digest] -= 1

    host = HostTier(read, BUDGET, Metrics())

    def work(number: int) -> None:
        dice, mine = random.Random(f"{seed} {number}"), list[HostEntry]()
        for _ in range(60):
            name = dice.choice("abcdef")
            if mine and dice.random() < 0.5:
                host.release(mine.pop(dice.randrange(len(mine))))
            elif (
                entry := dice.choice((host.hold, host.prefetch))(version(name, 1 + ord(name) - ord("a")))
            ) is not None:
                mine.append(entry)
            with host._lock:
                if host._bytes > BUDGET and host._idle:
                    broken.append("over the budget")
                broken.extend(
                    "put out" for one in mine if one.is_read and host._entries.get(one.version.digest) is not one
                )
        for entry in mine:
            host.release(entry)

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work, number) for number in range(4)]:
            done.result(20)
    settle(host)
    assert not broken and not twice
    assert host._held_bytes == 0 and all(entry.users == 0 for entry in host._entries.values())
    assert host._bytes == host._read_bytes == sum(entry.nbytes for entry in host._entries.values()) <= BUDGET
    assert host._entries.keys() == host._idle.keys() and host._read == len(host._idle)
    host.close()
