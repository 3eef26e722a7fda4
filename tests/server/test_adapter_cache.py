"""The line for room in the pool: nobody who can go on is held up, and nobody is passed for ever."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux_kernels.pool import RowAllocator
from loramux_server.engine import adapter_cache, device_tier
from loramux_server.engine.adapter_cache import AdapterCache
from loramux_server.engine.device_tier import Lease
from loramux_server.engine.waiting_line import HITS_PAST, LOADS_PAST
from loramux_server.errors import PictureFailed
from loramux_server.metrics import Metrics
from loramux_store.record import Embedding


def embedding(name: str) -> Any:
    """Of 3 vectors of width 8: 96 bytes."""
    found = Embedding(name, 3, {"text_encoder": 8})
    return SimpleNamespace(digest=name, adapter=name, number=1, report=SimpleNamespace(matched=[]), embedding=found)


def version(name: str, rank: int) -> Any:
    report = SimpleNamespace(matched=[SimpleNamespace(module="p", rank=rank)])
    return SimpleNamespace(digest=name, adapter=name, number=1, report=report, embedding=None)


class Pool:
    """A cache over one layer group of so many rows, whose loader is quick."""

    def __init__(self, rows: int) -> None:
        group = SimpleNamespace(name="g", rooms={"g": RowAllocator(rows + 1)}, paths=["p"], write=lambda *_: None)
        group.needs = lambda modules: {"g": max(module.rank for module in modules)}
        self.cache = AdapterCache(cast("Any", {"g": group}), lambda _: Path(), Metrics(), 512, torch.device("cpu"))

    def ask(self, **ranks: int) -> "Future[Lease]":
        return self.ask_for(version(name, rank) for name, rank in ranks.items())

    def ask_for(self, versions: Iterable[Any]) -> "Future[Lease]":
        future = self.cache.request(list(versions))
        self.settle()
        return future

    def settle(self) -> None:
        """Waits until the loader has nothing to do."""
        self.cache._loader.submit(int).result(20)

    def release(self, future: "Future[Lease]") -> None:
        self.cache.release(future.result(0))
        self.settle()


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    monkeypatch.setattr(adapter_cache, "_read", lambda _: {})
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


def test_one_that_is_still_being_read_is_passed_by_any_number(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.ask(there=4)
    opened = threading.Event()

    def slowly(_: Path) -> adapter_cache.Factors:
        assert opened.wait(20)
        return {}

    monkeypatch.setattr(adapter_cache, "_read", slowly)
    slow = pool.cache.request([version("slow", 4)])
    assert all(pool.cache.request([version("there", 4)]).done() for _ in range(2 * HITS_PAST))
    opened.set()
    slow.result(20)


def test_nothing_is_read_for_a_blend_that_does_not_fit_yet(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    running = pool.ask(a=4)
    read: list[Path] = []
    monkeypatch.setattr(adapter_cache, "_read", lambda file: read.append(file) or {})
    large = pool.ask(b=4, c=12)
    assert not large.done() and read == []
    pool.release(running)
    assert large.done() and len(read) == 2


def test_embeddings_have_a_bound_of_their_own(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is put out for the other, and one that is in use is not put out at all."""
    read: list[str] = []
    monkeypatch.setattr(device_tier, "VECTOR_BYTES", 2 * 96)
    monkeypatch.setattr(pool.cache, "_compiled", lambda version: Path(version.digest))
    monkeypatch.setattr(
        adapter_cache, "_read_vectors", lambda file, _: read.append(str(file)) or {"text_encoder": torch.ones(3, 8)}
    )
    rows = pool.ask(lora=16)
    one, two = pool.ask_for([embedding("one")]), pool.ask_for([embedding("two")])
    assert list(one.result(0).vectors) == ["one"] and one.result(0).rows == {}
    waiting = pool.ask_for([embedding("three"), version("lora", 16)])
    assert not waiting.done() and read == ["one", "two"]
    pool.release(two)
    assert waiting.done() and read == ["one", "two", "three"]
    assert list(waiting.result(0).rows) == ["lora"] and list(waiting.result(0).vectors) == ["three"]
    for lease in (rows, one, waiting):
        pool.release(lease)
    again = pool.ask_for([embedding("three"), embedding("one")])
    assert again.done() and read == ["one", "two", "three"]
    pool.release(again)
    pool.ask(other=16)
    assert pool.ask_for([embedding("three")]).done() and len(read) == 3, "no vectors were put out for rows"
    pool.cache.evict_unused()
    assert pool.cache.device.vector_bytes == 96 and set(pool.cache.device.residents) == {"other", "three"}


def test_an_embedding_that_cannot_be_read_leaves_nothing(pool: Pool) -> None:
    failing = pool.ask_for([embedding("one")])
    assert isinstance(failing.exception(0), PictureFailed)
    assert pool.cache.device.vector_bytes == 0 and not pool.cache.device.residents


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_every_job_gets_its_turn(data: st.DataObject) -> None:
    """Random blends, random ends and cancels: when all that run end in turn, everybody was served, rows come back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter_cache, "_read", lambda _: {})
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
        assert not pool.cache._line and all(r.users == 0 for r in pool.cache.device.residents.values())
