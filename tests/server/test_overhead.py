"""What is not asked for costs nothing, and what is asked for costs no more among many residents than among few."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, cast

import loading
import pytest
import torch
from loading import Pool, settle
from torch import Tensor

from loramux_server.bench.operations import operations
from loramux_server.engine import adapter_cache, device_tier, host_tier, waiting_line
from loramux_server.engine.blends import EVERYWHERE, Added
from loramux_server.engine.load_base import load_base
from loramux_server.requests import BlendEntry, GenerationRequest, ImageKey, Weighted

PLAIN = GenerationRequest("a dog", seed=1, steps=6)
BLENDED = replace(PLAIN, blend=(BlendEntry("attention", 0.5), BlendEntry("everything", 0.8)))


@torch.inference_mode()
def test_a_batch_without_adapters_launches_the_operations_of_the_base_as_loaded(server: Any, tiny_base: Path) -> None:
    server.draw([BLENDED])  # so that there are rank rows that could be added
    plain, wrapped = load_base(tiny_base, "plain", torch.device("cpu")).unet, server.app.engine.base.unet
    latents, text = torch.randn(4, 4, 16, 16), torch.randn(4, 77, 32)
    given: list[Tensor] = []
    launched = [
        operations(lambda unet=unet: given.append(unet(latents, 500, text).sample)) for unet in (plain, wrapped)
    ]
    assert launched[0] == launched[1] and launched[0].total() > 100
    assert torch.equal(*given)
    group = server.app.engine.groups["unet.attention"]
    with group.adding([{EVERYWHERE: Added(((1, 0.5),))}] * 4):
        assert operations(lambda: wrapped(latents, 500, text)).total() > launched[0].total()


def test_a_tick_after_a_change_of_weight_launches_no_more_than_any_other(server: Any) -> None:
    """A schedule changes the weight before every tick, or keeps it; nothing is gathered again, no table is made."""
    server.draw([replace(PLAIN, blend=BLENDED.blend[1:])])  # so that its rows lie before the other's: no view
    job = server.admission.admit(BLENDED)
    ticks = {
        name: _ticks(server, replace(job, id=name, blend=tuple(_ending(each, end) for each in job.blend)))
        for name, end in (("level", 1.0), ("sloped", 0.5))
    }
    assert ticks["sloped"] == ticks["level"]
    assert not any(name.startswith("aten.index_select") for name in ticks["sloped"])


def _ending(weighted: Weighted, factor: float) -> Weighted:
    return replace(weighted, schedule=((0.0, 1.0), (1.0, factor)))


def _ticks(server: Any, job: Any) -> Any:
    """Operations of the third and fourth tick: the first two compute what a sampler computes once."""
    engine, key = server.app.engine, ImageKey(job.id, 0)
    lease = engine.load(job).result(20)
    engine.begin(job, lease)
    for _ in range(2):
        engine.step([key])
    seen = operations(lambda: [engine.step([key]) for _ in range(2)])
    scales = {float(tables.scale[0, 0]) for forward in server.forwards[-2:] for tables in forward.values()}
    assert len(scales) == (4 if job.id == "sloped" else 2), "the weights did not change, or the blend is not there"
    engine.drop([key])
    engine.adapters.release(lease)
    return seen


FILES = {module.__file__ for module in (adapter_cache, device_tier, host_tier, waiting_line)}


class Crowd:
    """A cache with so many residents of one row each, and room for no more."""

    def __init__(self, residents: int) -> None:
        self.pool = Pool(residents)
        self.pool.group.needs = lambda _: {"g": 1}
        self.cache = self.pool.cache
        for number in range(residents):
            self.cache.release(self.cache.request(cast("Any", [version(number)])).result(20))

    def lines(self, call: Callable[[], object]) -> int:
        """Lines of the cache's code that a call runs, on this thread."""
        count = 0

        def counted(frame: FrameType, event: str, _: object) -> Any:
            nonlocal count
            if frame.f_code.co_filename not in FILES:
                return None
            count += event == "line"
            return counted

        before = sys.gettrace()
        sys.settrace(counted)
        try:
            call()
        finally:
            sys.settrace(before)
        return count


def version(number: int) -> Any:
    return loading.version(f"{number}", 1)


@pytest.fixture
def crowds() -> list[Crowd]:
    return [Crowd(10), Crowd(300)]


def test_what_a_resident_blend_costs_does_not_grow_with_the_residents(crowds: list[Crowd]) -> None:
    def used(crowd: Crowd) -> None:
        future = crowd.cache.request([version(3), version(7)])
        crowd.cache.release(future.result(0))

    few, many = (crowd.lines(lambda crowd=crowd: used(crowd)) for crowd in crowds)
    assert 20 < few == many
    for crowd in crowds:
        crowd.cache.close()


def test_what_loading_into_a_full_pool_costs_does_not_grow_with_the_residents(
    crowds: list[Crowd], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but two of them in use, so that they would stand in the way of the one that is put out."""
    counts: list[int] = []
    for crowd in crowds:
        cache = crowd.cache
        for number in range(cache._groups["g"].rooms["g"].size - 3):
            cache.request([version(number)]).result(0)
        monkeypatch.setattr(cache, "_wake", lambda: None)  # this thread does the loader's work
        future = cache.request([version(999)])
        settle(cache.host)
        counts.append(crowd.lines(cache._serve))
        assert future.done() and future.result().rows["999"] and len(cache.device.idle) == 1
        cache.close()
    assert 20 < counts[0] == counts[1]


def test_the_spare_rows_are_those_of_the_residents_without_users(crowds: list[Crowd]) -> None:
    """Also after leases of several jobs on one adapter, and after some were put out."""
    cache = crowds[0].cache
    leases = [cache.request([version(n), version(3)]).result(0) for n in (1, 2, 3)]
    assert cache.device.spare["g"] == len(cache.device.idle) == 7
    cache.release(leases[0])
    assert "3" not in cache.device.idle and cache.device.spare["g"] == 8
    for lease in leases[1:]:
        cache.release(lease)
    assert list(cache.device.idle)[-3:] == ["1", "2", "3"] and cache.device.spare["g"] == 10
    cache.evict_unused()
    assert cache.device.spare["g"] == 0 and not cache.device.idle and not cache.device.residents
    for crowd in crowds:
        crowd.cache.close()
