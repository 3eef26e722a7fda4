"""Failures stay with their own request, rows come back, and prompts are encoded with their own blend."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from loramux_server import runner
from loramux_server.errors import Draining, Incompatible, InvalidRequest, PictureFailed
from loramux_server.metrics import Metrics
from loramux_server.requests import BlendEntry, GenerationRequest, ImageKey, Sampler, SigmaSchedule, Stepped
from loramux_server.scheduler import Plan
from loramux_store.errors import DataLoss, NotFound
from loramux_store.record import UploadSpec

PLAIN = GenerationRequest("a dog", seed=1, steps=3)


def test_a_row_that_becomes_non_finite_fails_its_own_request_only(server: Any, tmp_path: Path) -> None:
    key = "unet.conv_in"
    file = tmp_path / "huge.safetensors"
    save_file(
        {
            f"{key}.lora_A.weight": torch.full((1, 4, 3, 3), 1e30),
            f"{key}.lora_B.weight": torch.full((16, 1, 1, 1), 1e30),
        },
        file,
    )
    server.app.store.publish(file, UploadSpec(name="huge"))
    (alone,) = server.draw([PLAIN])
    bad = server.submit(replace(PLAIN, blend=(BlendEntry("huge", 1.0),)))
    good = server.submit(PLAIN)
    with pytest.raises(PictureFailed, match="became non-finite at step"):
        bad.pictures()
    assert np.abs(good.pictures()[0].astype(int) - alone.astype(int)).max() <= 1


def test_a_picture_fails_by_its_own_rows_alone(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever row of a shared forward it is: pictures of two, one and two rows."""
    engine, admit = server.app.engine, server.admission.admit
    for row, owner in enumerate((0, 0, 1, 2, 2)):
        jobs = [admit(request) for request in (PLAIN, replace(PLAIN, guidance_scale=1.0), PLAIN)]
        for job in jobs:
            engine.begin(job, engine.load(job).result(20))

        def bad(latents: torch.Tensor, *_: Any, row: int = row, **__: Any) -> tuple[torch.Tensor]:
            assert len(latents) == 5
            return (torch.zeros_like(latents).index_fill(0, torch.tensor(row), float("nan")),)

        monkeypatch.setattr(engine.base.unet, "forward", bad)
        keys = [ImageKey(job.id, 0) for job in jobs]
        assert [result.error is not None for result in engine.step(keys)] == [number == owner for number in range(3)]
        engine.drop(keys)


def test_cancelling_stops_the_steps_and_gives_the_rows_back(server: Any, wait_for: Any) -> None:
    free = {name: group.rows.free for name, group in server.app.engine.groups.items()}
    handle = server.submit(replace(PLAIN, steps=200, num_images=3, blend=(BlendEntry("attention", 1.0),)))
    wait_for(lambda: any(isinstance(event, Stepped) for event in handle.events))
    server.runner.cancel(handle.job.id)
    wait_for(lambda: server.app.metrics.registry.get_sample_value("loramux_requests_in_flight") == 0)
    heard, ticks = len(handle.events), len(server.forwards)
    server.draw([PLAIN])
    assert len(handle.events) == heard
    assert len(server.forwards) == ticks + 3, "the cancelled pictures went on"
    cache = server.app.engine.adapters
    cache.evict_unused()  # leaves what a lease keeps
    assert {name: group.rows.free for name, group in server.app.engine.groups.items()} == free


def test_a_blend_beyond_the_pool_is_refused_before_it_queues(server: Any) -> None:
    for group in server.app.engine.groups.values():
        group.open(18, torch.device("cpu"))
    request = replace(PLAIN, blend=(BlendEntry("attention", 1.0), BlendEntry("everything", 1.0)))
    with pytest.raises(Incompatible, match=r"total rank 20 in \S+, at most 17 fits"):
        server.admission.admit(request)


def test_a_damaged_blob_fails_the_request_that_needs_it(server: Any) -> None:
    version = server.app.store.resolve("attention")
    server.app.store.compiled(version).unlink()
    blob = next((server.app.settings.store / "blobs").rglob(version.blob_digest))
    blob.chmod(0o644)
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    handle = server.submit(replace(PLAIN, blend=(BlendEntry("attention", 1.0),)))
    with pytest.raises(DataLoss):
        handle.pictures()
    assert server.draw([PLAIN])


def test_fields_left_open_take_the_bases_values(server: Any) -> None:
    job = server.admission.admit(GenerationRequest("a dog"))
    assert (job.width, job.height, job.num_images) == (32, 32, 1)
    assert (job.sampling.steps, job.sampling.guidance_scale, job.sampling.sampler) == (20, 7.5, Sampler.DPMPP_2M)
    assert job.seed != server.admission.admit(GenerationRequest("a dog")).seed


def test_every_field_at_fault_is_named_at_once(server: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        server.admission.admit(GenerationRequest("a dog", steps=0, width=7, seed=-1, guidance_scale=float("inf")))
    assert [v.field for v in caught.value.violations] == ["steps", "guidance_scale", "seed", "width"]


@pytest.mark.parametrize(
    "asked,field,said",
    [
        ({"sigma_schedule": SigmaSchedule.KARRAS}, "sigma_schedule", "is karras, ddim takes only base"),
        ({"timesteps": (999, 500)}, "timesteps", "are given, ddim takes none"),
        ({"sampler": Sampler.EULER, "timesteps": (5, 500)}, "timesteps", "expected falling numbers from 0 to 999"),
        ({"sampler": Sampler.EULER, "timesteps": (1000, 5)}, "timesteps", "expected falling numbers from 0 to 999"),
        ({"sampler": Sampler.EULER, "timesteps": (9, 5), "steps": 3}, "steps", "expected none beside 2 timesteps"),
        (
            {"sampler": Sampler.EULER, "timesteps": (9, 5), "sigma_schedule": SigmaSchedule.KARRAS},
            "sigma_schedule",
            "expected none beside timesteps",
        ),
        ({"sampler": Sampler.LCM, "steps": 51}, "steps", "cannot be taken by lcm on this base"),
        ({"guidance_rescale": 1.5}, "guidance_rescale", "expected 0 to 1"),
    ],
)
def test_what_a_sampler_cannot_do_is_refused(server: Any, asked: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        server.admission.admit(GenerationRequest("a dog", **{"sampler": Sampler.DDIM, **asked}))
    (violation,) = caught.value.violations
    assert violation.field == field and said in violation.description


def test_an_unknown_adapter_is_named(server: Any) -> None:
    with pytest.raises(NotFound, match="nobody"):
        server.admission.admit(replace(PLAIN, blend=(BlendEntry("nobody", 1.0),)))


def test_images_of_one_request_are_those_of_consecutive_seeds(server: Any) -> None:
    many = server.submit(replace(PLAIN, num_images=3)).pictures()
    single = server.draw([replace(PLAIN, seed=seed) for seed in (1, 2, 3)])
    assert len({picture.tobytes() for picture in many}) == 3
    assert all(np.abs(a.astype(int) - b.astype(int)).max() <= 1 for a, b in zip(many, single, strict=True))


def test_an_unguided_picture_takes_one_row(server: Any) -> None:
    server.forwards.clear()
    server.draw([replace(PLAIN, guidance_scale=1.0, blend=(BlendEntry("everything", 1.0),))])
    assert {table.rows for forward in server.forwards for table in forward.values()} == {1}


def test_the_prompt_cache_tells_blends_apart(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only text-encoder weights are in the key: a UNet-only change reuses, a text change does not."""
    (prompts,) = server.app.engine.conditioner.encoders
    encoded: list[int] = []
    encode = prompts._encode

    def counting(chunk: Any, *rest: Any) -> Any:
        encoded.append(len(chunk.tokens))
        return encode(chunk, *rest)

    monkeypatch.setattr(prompts, "_encode", counting)
    for weight in (1.0, 1.0, 0.5):
        server.draw([replace(PLAIN, blend=(BlendEntry("attention", weight),))])
    dog = len(prompts._tokens("a dog"))
    assert encoded == [0, dog] * 2
    server.draw([PLAIN])
    server.draw([replace(PLAIN, guidance_scale=2.0)])
    assert len(encoded) == 6


def test_sizes_other_than_the_bases_own(server: Any) -> None:
    wide, tall = server.draw([replace(PLAIN, width=64, height=32), replace(PLAIN, width=32, height=48)])
    assert wide.shape == (32, 64, 3) and tall.shape == (48, 32, 3)


def test_a_stopping_runner_takes_nothing_new(server: Any) -> None:
    running = server.submit(replace(PLAIN, steps=20))
    assert server.runner.drain(20)
    assert running.pictures()
    with pytest.raises(Draining):
        server.submit(PLAIN)


def test_a_tick_is_measured_from_its_plan_to_what_follows_from_its_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    now, plans, metrics = [0.0], [Plan((8, 8), (), 0)], Metrics()

    def lasting(seconds: float, gives: Any = None) -> Any:
        now[0] += seconds
        return gives

    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: now[0]))
    scheduler: Any = SimpleNamespace(
        plan=lambda: lasting(1, plans.pop() if plans else None),
        stepped=lambda *_: lasting(100),
        speed=1.0,
        finish=lambda keys: [*keys],
    )
    engine: Any = SimpleNamespace(step=lambda _: lasting(10, []))
    made = runner.Runner(engine, scheduler, metrics)
    assert made._tick() and not made._tick()  # nothing could step the second time: no tick
    sample = metrics.registry.get_sample_value
    assert (sample("loramux_tick_seconds_count"), sample("loramux_tick_seconds_sum")) == (1, 111)


def test_a_base_folder_may_be_called_anything(make_server: Callable[..., Any], tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "copy" / "sd1")
    server = make_server(tmp_path / "copy" / "sd1")
    assert server.admission.base.layout_name == "base-sd1"
    assert server.app.store.layout("base-sd1").digest == server.admission.base.layout_digest
