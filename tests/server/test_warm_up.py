"""The picture that is drawn before a server is ready: on every kind of base, before readiness, and without a trace."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from living import Living

from loramux_server import app as composition
from loramux_server.errors import PictureFailed

COUNTED = ("cache", "batch_size", "blends", "step_seconds", "images", "request", "admitted", "speed", "memory_total")
"""In names of metrics that pictures move."""


@pytest.mark.parametrize(
    "base", ["tiny_base", "other_tiny_base", "tiny_inpainting_base", "tiny_lcm", "tiny_sd2", "tiny_sdxl"]
)
def test_every_kind_of_base_draws_it_and_nothing_tells(
    base: str, make_server: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    server = make_server(request.getfixturevalue(base))
    before = counted(server)
    drawn: list[Any] = []
    decode = server.app.engine.base.vae.decode
    server.app.engine.base.vae.decode = lambda *given, **named: drawn.append(given) or decode(*given, **named)
    server.app._warm_up()
    assert len(drawn) == 1 and counted(server) == before
    assert not server.forwards and not server.app.engine._images and server.app.engine.conditioner.nbytes == 0


def counted(server: Any) -> dict[str, float]:
    samples = [sample for metric in server.app.metrics.registry.collect() for sample in metric.samples]
    return {
        f"{sample.name}{sample.labels}": sample.value
        for sample in samples
        if any(word in sample.name for word in COUNTED) and not sample.name.endswith("_created")
    }


async def test_the_server_is_ready_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing, drawn, warm_up = threading.Event(), threading.Event(), composition.warm_up
    living = Living(tmp_path / "store")

    def hanging(*given: Any) -> None:
        drawing.set()
        assert drawn.wait(60)
        warm_up(*given)

    monkeypatch.setattr(composition, "warm_up", hanging)
    starting = asyncio.create_task(living.start())
    assert await asyncio.to_thread(drawing.wait, 20)
    assert not living._ready.done() and not living.app._ready and not living.app.runner.alive
    drawn.set()
    await starting
    assert await living.http("/readyz") == 200
    await living.shut()


async def test_a_base_that_cannot_draw_ends_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    living = Living(tmp_path / "store")
    monkeypatch.setattr(living.app.engine.base.vae, "decode", lambda *_, **__: 1 / 0)
    said = r"^base builtin cannot draw: a picture of \d+x\d+ in 1 step, .*ZeroDivisionError: division by zero$"
    with pytest.raises(PictureFailed, match=said):
        await living.app.run(living._ready.set_result, living.stop)
    assert not living._ready.done()
