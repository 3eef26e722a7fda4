"""How many rows fit: arithmetic on memory that is only pretended to have been measured, and what the server takes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loramux_server import app
from loramux_server.engine import row_budget
from loramux_server.engine.conditioning import blank, unet_arguments
from loramux_server.engine.device_tier import VECTOR_BYTES
from loramux_server.engine.load_base import load_base
from loramux_server.engine.pipeline import Base
from loramux_server.engine.row_budget import MOST_ROWS, RowBudget, measure
from loramux_server.settings import Settings

GIB = 1 << 30
AREA = 64 * 64


def line(fixed: int, row: int) -> Callable[[int], int]:
    return lambda rows: fixed + rows * row


def loaded(folder: Path) -> Base:
    return load_base(folder, "tiny", torch.device("cpu"))


def test_rows_lie_on_the_line_through_two_and_four() -> None:
    budget = measure(line(GIB, GIB // 2), AREA, free_bytes=20 * GIB)
    assert budget.rows(AREA) == (20 * 0.8 - 1) / 0.5
    assert budget.rows(4 * AREA) == 7, "four times the area, a quarter of the rows, rounded down"
    assert budget.rows(AREA // 4) == MOST_ROWS


def test_a_guided_picture_is_always_tried() -> None:
    assert measure(line(GIB, GIB), AREA, free_bytes=GIB).rows(AREA) == 2


@pytest.mark.parametrize("peak", [lambda _: GIB, lambda rows: GIB // rows, lambda _: 0])
def test_odd_measurements_do_not_promise_the_moon(peak: Callable[[int], int]) -> None:
    assert 2 <= measure(peak, AREA, free_bytes=8 * GIB).rows(AREA) <= MOST_ROWS


def test_the_setting_comes_first_then_the_measurement_then_the_cpus_number(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = loaded(tiny_base)
    assert app._max_rows(Settings(), base, 0, False)(AREA) == 32
    assert app._max_rows(Settings(max_rows=6), base, 0, False)(AREA) == 6
    monkeypatch.setattr(row_budget, "on_cuda", lambda *_: RowBudget(10 * AREA, 1))
    base = replace(base, device=torch.device("cuda"))
    assert app._max_rows(Settings(), base, 0, False)(AREA) == 10
    assert app._max_rows(Settings(max_rows=6), base, 0, False)(AREA) == 6


def test_the_measuring_forward_runs(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU with the card's counters replaced: shapes and calls are right."""
    seen: list[int] = []
    cuda: Any = torch.cuda
    monkeypatch.setattr(cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(cuda, "memory_allocated", lambda _: 100)
    monkeypatch.setattr(cuda, "max_memory_allocated", lambda _: 100 + (seen.append(1) or len(seen)) * GIB)
    monkeypatch.setattr(cuda, "memory_reserved", lambda _: 100)
    monkeypatch.setattr(cuda, "mem_get_info", lambda _: (10 * GIB, 16 * GIB))
    base = loaded(tiny_base)
    assert row_budget.on_cuda(base, 0, 1) == RowBudget(8.0 * GIB, GIB / 2 / 16**2)
    seen.clear()
    assert row_budget.on_cuda(base, 5 * GIB, 1) == RowBudget(4.0 * GIB, GIB / 2 / 16**2)
    seen.clear()
    assert row_budget.on_cuda(base, 5 * GIB, 2) == RowBudget(2.0 * GIB, GIB / 2 / 16**2)


def test_what_is_taken_up_later_is_no_room_for_rows(server: Any) -> None:
    engine, settings = server.app.engine, server.app.settings
    before = engine.later_bytes
    for group in engine.groups.values():
        group.open(18, torch.device("cpu"))
    rows = sum(group.row_bytes for group in engine.groups.values())
    texts = settings.prompt_cache_bytes + settings.cross_attention_cache_bytes
    assert engine.later_bytes == 18 * rows + texts + VECTOR_BYTES < before


@pytest.mark.parametrize("base", ["tiny_base", "tiny_inpainting_base", "tiny_sd2", "tiny_sdxl", "tiny_lcm"])
def test_a_forward_of_any_base_can_be_tried_out(base: str, request: pytest.FixtureRequest) -> None:
    loaded = load_base(request.getfixturevalue(base), base, torch.device("cpu"))
    latents = torch.zeros(3, loaded.unet.config["in_channels"], 16, 16)
    with torch.inference_mode():
        (out,) = loaded.unet(latents, 500, **unet_arguments([blank(loaded, 3)], torch.float32), return_dict=False)
    assert out.shape == (3, 4, 16, 16)
