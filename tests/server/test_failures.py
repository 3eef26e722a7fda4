"""What goes wrong beside a request stays beside it: cancelled loads, failed writes, full devices, dead threads."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from loramux_server.engine.compiled_reader import HostAdapter
from loramux_server.errors import BadSetting, Draining, PictureFailed
from loramux_server.requests import BlendEntry, Failed, GenerationRequest

PLAIN = GenerationRequest("a dog", seed=1, steps=3)
BLENDED = replace(PLAIN, blend=(BlendEntry("attention", 1.0),))


def free_rows(server: Any) -> dict[str, int]:
    return {name: group.rows.free for name, group in server.app.engine.groups.items()}


def gate(server: Any) -> tuple[threading.Event, threading.Event]:
    """Loading stops until the second event is set; the first says that it got there."""
    reached, opened = threading.Event(), threading.Event()
    host = server.app.engine.adapters.host
    read = host.read

    def gated(version: Any) -> HostAdapter:
        reached.set()
        assert opened.wait(20)
        return read(version)

    host.read = gated
    return reached, opened


def test_cancelling_while_the_adapter_loads(server: Any, wait_for: Any) -> None:
    reached, opened = gate(server)
    waiting = server.submit(BLENDED)
    assert reached.wait(20)
    assert server.draw([PLAIN]), "a load holds up nobody else"
    server.runner.cancel(waiting.job.id)
    wait_for(lambda: server.app.metrics.registry.get_sample_value("loramux_requests_in_flight") == 0)
    opened.set()
    assert server.draw([BLENDED])
    users = [resident.users for resident in server.app.engine.adapters.device.residents.values()]
    wait_for(lambda: [r.users for r in server.app.engine.adapters.device.residents.values()] == [0] * len(users))


def test_a_failed_load_gives_its_rows_back(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = free_rows(server)

    def failing(version: Any) -> HostAdapter:
        raise RuntimeError("secret details")

    with monkeypatch.context() as patch:
        patch.setattr(server.app.engine.adapters.host, "read", failing)
        handle = server.submit(BLENDED)
        with pytest.raises(PictureFailed, match="attention@1 could not be loaded: RuntimeError") as caught:
            handle.pictures()
    assert "secret" not in str(caught.value)
    assert free_rows(server) == before
    assert server.draw([BLENDED])


def test_out_of_memory_halves_the_batch(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [replace(PLAIN, seed=seed) for seed in range(5)]
    alone = [server.draw([request])[0] for request in asked]
    engine, sizes = server.app.engine, []
    forward = engine._forward

    def small(rows: Any) -> torch.Tensor:
        sizes.append(len(rows))
        if len(rows) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return forward(rows)

    monkeypatch.setattr(engine, "_forward", small)
    together = server.draw(asked)
    assert max(sizes) > 4, "nothing ran out of memory"
    assert all(abs(a.astype(int) - b.astype(int)).max() <= 1 for a, b in zip(alone, together, strict=True))
    monkeypatch.setattr(engine, "_forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("never")))
    with pytest.raises(PictureFailed, match="does not fit into device memory"):
        server.draw([PLAIN])


def test_a_failing_sampler_fails_its_own_picture(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (alone,) = server.draw([PLAIN])
    bad = replace(PLAIN, steps=7)
    from loramux_server.engine.sampling import ImageSampler

    advance = ImageSampler.advance

    def failing(self: ImageSampler, prediction: torch.Tensor) -> None:
        if self.total == 7:
            raise IndexError("sigma")
        advance(self, prediction)

    monkeypatch.setattr(ImageSampler, "advance", failing)
    handles = [server.submit(bad), server.submit(PLAIN)]
    with pytest.raises(PictureFailed, match="failed in its sampler"):
        handles[0].pictures()
    assert abs(handles[1].pictures()[0].astype(int) - alone.astype(int)).max() <= 1


def test_a_dead_runner_is_seen_and_takes_nothing(server: Any, wait_for: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = server.submit(replace(PLAIN, steps=200))
    monkeypatch.setattr(server.runner._scheduler, "plan", lambda: 1 / 0)
    with pytest.raises(Draining):
        handle.pictures()
    wait_for(lambda: not server.runner.alive)
    assert server.app.metrics.registry.get_sample_value("loramux_engine_up") == 0
    with pytest.raises(Draining):
        server.submit(PLAIN)


def test_what_still_runs_at_the_end_hears_why(server: Any) -> None:
    handle = server.submit(replace(PLAIN, steps=200))
    assert not server.runner.drain(0.05)
    server.runner.stop()
    assert isinstance(handle.events[-1], Failed) and isinstance(handle.events[-1].error, Draining)


def test_a_pool_too_small_for_any_adapter_is_told(make_server: Callable[..., Any]) -> None:
    with pytest.raises(BadSetting, match=r"pool_bytes is 1048576, expected at least \d+ on this base"):
        make_server("builtin", pool_bytes=1 << 20)
