"""The benchmarks run, check what they compare, and tell it in one form."""

import itertools
import json
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import structlog
import torch
from diffusers import UNet2DConditionModel

from loramux_client import AsyncClient
from loramux_client import cli as command_line
from loramux_server import logs, memory
from loramux_server.bench import (
    activation,
    call,
    cli,
    engine,
    gpu,
    ingest,
    kernels,
    overhead,
    serve,
    shapes,
    soak,
    store,
    streams,
    tiers,
    unet,
)
from loramux_server.bench.harness import Row, medians, ratio, report
from loramux_server.bench.shapes import LayerShape
from loramux_server.demo_server import serving
from loramux_server.engine.device_tier import DeviceTier
from loramux_server.requests import BlendEntry


@pytest.mark.parametrize(
    "value,bound,holds",
    [(1.0, "<=1.05", True), (1.1, "<=1.05", False), (2.0, ">=2", True), (1.9, ">=2", False), (9, "", True)],
)
def test_bounds(value: float, bound: str, holds: bool) -> None:
    assert Row("x", value, "x", bound).holds is holds


def test_a_ratio_runs_both_sides_in_every_round() -> None:
    calls: list[str] = []
    assert ratio(lambda: calls.append("a"), lambda: calls.append("b"), repeats=5) > 0
    rounds = [calls[i : i + 2] for i in range(0, len(calls), 2)]
    assert len(rounds) == 6 and all(sorted(both) == ["a", "b"] for both in rounds)


def test_medians_go_on_until_the_time_is_spent() -> None:
    calls: list[str] = []
    taken = medians({"a": lambda: calls.append("a")}, 2, lambda call: (call(), 0.3)[1], seconds=1.0, warm=True)
    assert taken == {"a": 0.3} and calls == ["a"] * 4


def test_an_absent_package_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loramux_server.bench.harness._PACKAGES", ("torch", "no-such-package"))
    versions = report("", [])["versions"]
    assert isinstance(versions, dict) and versions["torch"] and versions["no-such-package"] is None


SMALL = [LayerShape(shapes.SD15, "attn", 8, 24, 32, 32, 3, 3), LayerShape(shapes.SD15, "kv", 2, 7, 48, 32, 2, 2)]


def test_every_side_of_a_layer_is_timed_and_summed() -> None:
    """On layers much smaller than those that the command measures."""
    setting = kernels.Setting(2, torch.device("cpu"), torch.float32, rounds=1, seconds=0)
    rows = kernels.measure_at(setting, [SMALL])
    assert all(row.value > 0 for row in rows)
    summed = {row.name.rsplit(", ", 1)[1]: row.bound for row in rows if "all 10 transformer linears" in row.name}
    for rank, bound in (("R16", "<=1.10"), ("R48", "<=1.25")):
        assert summed[f"{rank}: reference / base"] == bound
        assert summed[f"{rank}: reference / PEFT"] == "<=1"
        assert summed[f"{rank}: unfused / base"] == ""
    assert sum("attn x8" in row.name for row in rows) == 7


def test_without_peft_its_rows_are_absent_with_a_note(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("loramux_server.bench.kernels.find_spec", lambda name: None)
    setting = kernels.Setting(2, torch.device("cpu"), torch.float32, rounds=1, seconds=0)
    rows = kernels.measure_at(setting, [SMALL[:1]])
    assert not any("PEFT" in row.name for row in rows) and "PEFT is not installed" in caplog.text


UNETS = {
    shapes.SD15: {"cross_attention_dim": 768, "attention_head_dim": 8},
    shapes.SDXL: {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
    },
}


@pytest.mark.parametrize("model", UNETS)
def test_shapes_are_those_of_the_model(model: str) -> None:
    """Inputs, outputs and whether they read text, of every linear layer in its transformers."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(use_linear_projection=True, **UNETS[model])
    there = Counter(
        (layer.in_features, layer.out_features, name.endswith(("attn2.to_k", "attn2.to_v")))
        for name, layer in unet.named_modules()
        if ".attentions." in name and isinstance(layer, torch.nn.Linear)
    )
    told: Counter[tuple[int, int, bool]] = Counter()
    for shape in shapes.of_model(model):
        told[shape.k, shape.n, shape.tokens == shapes.TEXT_TOKENS] += shape.count
    assert told == there


def test_layers_count_as_often_as_a_forward_meets_them() -> None:
    times = {SMALL[0].size: {"base": 2.0}, SMALL[1].size: {"base": 5.0}}
    assert kernels.total(SMALL, times, "base") == 8 * 2 + 2 * 5


def test_what_a_time_limit_or_an_error_leaves_out_is_named(tmp_path: Path) -> None:
    file = tmp_path / "result.json"

    def broken() -> list[Row]:
        raise RuntimeError("out of memory")

    parts = [("bad", broken), ("good", lambda: [Row("x", 1, "x")])]
    assert gpu.measure(file, 60, parts, {"card": "none"}) is False
    told = json.loads(file.read_text())
    assert told["machine"]["card"] == "none" and [row["name"] for row in told["rows"]] == ["x"]
    assert told["machine"]["not measured"] == {"bad": "RuntimeError: out of memory"}
    assert gpu.measure(file, 0, parts, {}) is True
    assert json.loads(file.read_text())["machine"]["not measured"].keys() == {"bad", "good"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_there_is_nothing_to_tune(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.bench("tune") == 2
    assert "NVIDIA card" in capsys.readouterr().err
    assert gpu.main(["check"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_a_short_soak_finds_nothing() -> None:
    """The long form, `loramux bench soak`, watches memory too."""
    rows = {row.name: row for row in soak.measure(60)}
    memory = rows.pop("growth of resident memory after the warm-up")
    assert memory.bound and all(row.holds for row in rows.values()), rows


def test_a_soak_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are never given back, and a picture that is another's."""
    monkeypatch.setattr(DeviceTier, "give_back", lambda *_: None)
    numbers = itertools.count()
    monkeypatch.setattr(soak, "_picture", lambda _: np.full((2, 2, 3), next(numbers) % 200))
    monkeypatch.setattr(soak, "_ROOM", 10.0)
    rows = {row.name: row for row in soak.measure(12)}
    assert not rows["pictures that were wrong"].holds and not rows["rank rows lost"].holds


def test_many_adapters_are_asked_for_where_few_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The long form, `loramux bench tiers`, has a thousand; what takes how long is not for a test to say."""
    monkeypatch.setattr(tiers, "_SLOWED_S", 1.0)
    monkeypatch.setattr(tiers, "_ROUNDS", 2)
    rows = tiers.measure(tiers.Size(adapters=8, room=3, requests=6, slow=1, steps=1))
    assert [row.bound for row in rows if row.bound] == [">=0.8", "<=16", *["<=1.5"] * 4]
    assert all(row.value > 0 for row in rows if row.unit in ("x", "a second"))
    assert all(0 <= row.value <= 1 for row in rows if row.unit == "of requests"), rows


def test_adapters_that_do_nothing_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "BlendEntry", lambda name, _: BlendEntry(name, 0.0))
    with pytest.raises(AssertionError, match="the adapters do nothing"):
        tiers.measure(tiers.Size(adapters=2, room=2, requests=1, slow=1, steps=1))


def test_the_engine_is_compared_with_what_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every side once, on pictures of few steps: the checks of sameness are the point."""
    calls: list[object] = []
    monkeypatch.setattr(engine, "_STEPS", 1)
    monkeypatch.setattr(engine, "_PEER_STEPS", 4)
    monkeypatch.setattr(engine, "_TICKS", 4)
    monkeypatch.setattr(engine, "ratio", lambda one, other, *_: float(len([calls.append(s()) for s in (one, other)])))
    rows = engine.measure()
    assert len(rows) == 7 and len(calls) == 12 and [row.bound for row in rows[-2:]] == [">=2.5"] * 2


TINY = unet.Shape(
    "a tiny UNet",
    8,
    {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
    },
)


def test_a_unet_with_an_adapter_is_compared_with_pefts() -> None:
    rows = unet.measure_at(TINY, 1)
    assert [row.bound for row in rows] == ["<=1.10", "<=1", ""] and all(row.value > 0 for row in rows)


def test_another_weight_than_pefts_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unet._Ours, "run", lambda ours, forward: forward(ours._unet) * 1.001)
    with pytest.raises(AssertionError, match="ours computes something else than PEFT"):
        unet.measure_at(TINY, 1)


def test_pages_and_start_of_a_filled_catalog_are_timed(tmp_path: Path) -> None:
    """On one much smaller than that which the command measures."""
    rows = store.measure_listing(tmp_path, 600)
    assert [row.bound for row in rows] == ["<=20"] * 4 + ["", "<=2"] and all(row.value > 0 for row in rows)


def test_a_large_adapter_is_published_and_loaded(tmp_path: Path) -> None:
    """One of rank 1 of the same modules."""
    rows = ingest.measure(tmp_path, 1)
    assert [row.bound for row in rows] == ["<=2.5", "<=1.5", "", ""] and all(row.value > 0 for row in rows)


def check_object(text: str) -> None:
    """The one form of every result."""
    told = json.loads(text)
    assert told.keys() == {"machine", "versions", "command", "rows"} and told["rows"]
    for row in told["rows"]:
        assert row.keys() == {"name", "value", "unit", "bound", "holds"}
        beyond = "beyond" in row["name"]  # a difference of times, which a busy machine may turn round
        assert row["value"] > 0 or beyond or (row["unit"] == "operations" and row["holds"]), row


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `loramux bench overhead` measures, once, among few residents; memory and log of the process stay."""
    configure = logs.configure

    def configured(level: int) -> None:
        configure(level)
        structlog.configure(cache_logger_on_first_use=False)

    for module in (overhead, activation):
        monkeypatch.setattr(module, "_REPEATS", 1)
    monkeypatch.setattr(activation, "MANY", 20)
    monkeypatch.setattr(call.measure, "__defaults__", (1, 1))
    monkeypatch.setattr(memory, "keep_freed", lambda: None)
    monkeypatch.setattr(logs, "configure", configured)
    monkeypatch.setattr(os, "putenv", lambda *_: None)
    yield
    structlog.reset_defaults()
    logging.basicConfig(force=True, level=logging.WARNING)


def test_one_json_object(hasty: None, capfd: pytest.CaptureFixture[str]) -> None:
    """And nothing else on standard output."""
    assert command_line.main(["bench", "overhead", "--json"]) == 0
    check_object(capfd.readouterr().out)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["kernels", "overhead", "store", "engine"])
def test_one_json_object_of_a_process(name: str) -> None:
    command = [sys.executable, "-m", "loramux_client.cli", "bench", name, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    check_object(done.stdout)


async def test_a_server_asked_for_too_much_refuses_with_a_time_to_wait(tmp_path: Path) -> None:
    """The short form of `loramux bench serve`: two hundred requests in two seconds, of which four may wait."""
    async with (
        serving(tmp_path, "--max-queue", "4") as ready,
        AsyncClient(ready.grpc, timeout=60, retries=0) as client,
        serve._watched(client, ready) as heard,
    ):
        await serve._open_loop(client, heard, rate=100.0, seconds=2.0)
    drawn = heard.ends.pop("in time", 0) + heard.ends.pop("after the end", 0)
    assert drawn >= 4 and heard.ends.pop("refused") > 50 and not heard.ends
    assert 0 < max(heard.queued) <= 4 and heard.health and heard.memory


async def test_streams_are_held_open_beside_one_another(tmp_path: Path) -> None:
    rows = await serve._measure_streams(tmp_path, streams.Crowd(connections=4, watches=20, pictures=3))
    assert [row.unit for row in rows] == ["ms", "ms"] and rows[0].name.startswith("92 open streams on 8 connections")


def test_a_call_and_the_engine_draw_the_same() -> None:
    outside, beyond = call.measure(calls=1, pairs=1)
    assert (outside.unit, beyond.unit) == ("ms", "ms") and outside.value > 0


def test_what_the_engine_does_is_no_cost_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that moves where something is done: begin, two steps and deliver, and 1.5 s of others."""
    clock = SimpleNamespace(now=0.0)

    class Worker:
        def begin(self, seconds: float) -> None:
            clock.now += seconds

        step = deliver = begin

    engine = Worker()

    def ask(_client: object, _steps: int) -> None:
        clock.now += 1.0
        for work, seconds in ((engine.begin, 4.0), (engine.step, 8.0), (engine.step, 16.0), (engine.deliver, 32.0)):
            work(seconds)
        clock.now += 0.5

    monkeypatch.setattr(call, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(call, "_ask", ask)
    outside = call._outside(cast(Any, SimpleNamespace(engine=engine)), cast(Any, None))
    assert outside == 1.5 and not vars(engine)
