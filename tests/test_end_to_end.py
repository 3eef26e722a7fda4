"""A stranger's view: `loramux serve` in a process of its own, spoken to over the wire."""

import concurrent.futures
import hashlib
import io
import json
import os
import pickle
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from PIL import Image
from safetensors.torch import save

from loramux.v1 import (
    adapter_pb2,
    adapter_service_pb2,
    adapter_service_pb2_grpc,
    generation_pb2,
    generation_service_pb2,
    generation_service_pb2_grpc,
)
from loramux_client import cli
from loramux_server import logs, memory

CLI = (sys.executable, "-m", "loramux_client.cli")
LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
READY = re.compile(r"loramux ready grpc=(\S+) http=(\S+) base=(\S+)")


@dataclass(frozen=True)
class Running:
    """A server process and its doors."""

    process: subprocess.Popen[str]
    target: str
    http: str
    channel: grpc.Channel

    @property
    def pictures(self) -> generation_service_pb2_grpc.GenerationServiceStub:
        return generation_service_pb2_grpc.GenerationServiceStub(self.channel)

    @property
    def shelf(self) -> adapter_service_pb2_grpc.AdapterServiceStub:
        return adapter_service_pb2_grpc.AdapterServiceStub(self.channel)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.http}{path}", timeout=10) as answer:
            return answer.read().decode()

    def metric(self, sample: str) -> float:
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith(f"{sample} ")]
        return float(lines[0].split()[-1]) if lines else 0.0

    def upload(self, name: str, file: bytes, **spec: object) -> adapter_service_pb2.UploadAdapterResponse:
        values: dict[str, object] = {"size_bytes": len(file), "sha256": hashlib.sha256(file).hexdigest(), **spec}
        messages = [adapter_service_pb2.UploadAdapterRequest(spec=adapter_service_pb2.UploadSpec(name=name, **values))]  # type: ignore[arg-type]
        for start in range(0, len(file), 1 << 16):
            messages.append(adapter_service_pb2.UploadAdapterRequest(chunk=file[start : start + (1 << 16)]))
        return self.shelf.UploadAdapter(iter(messages), timeout=60)


def start(store: Path, *options: str, port: str = "0") -> Running:
    process = subprocess.Popen(
        [*CLI, "serve", "--port", port, "--metrics-port", "0", "--store", str(store), *options],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    found = READY.match(process.stdout.readline())
    assert found, "no ready line"
    return Running(process, found[1], found[2], grpc.insecure_channel(found[1]))


def stop(server: Running) -> int:
    server.channel.close()
    server.process.send_signal(signal.SIGTERM)
    code = server.process.wait(60)
    assert server.process.stdout is not None
    server.process.stdout.close()
    return code


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = start(tmp_path_factory.mktemp("store"))
    yield running
    assert stop(running) == 0


@pytest.fixture(scope="module")
def names(server: Running) -> list[str]:
    """Adapters that an empty store was seeded with."""
    listed = server.shelf.ListAdapters(adapter_service_pb2.ListAdaptersRequest())
    return [adapter.name for adapter in listed.adapters]


def adapter_file(values: float = 0.1) -> bytes:
    """A small PEFT file for one layer of the built-in base."""
    width = 48
    return save(
        {
            f"{LAYER}.lora_A.weight": torch.full((2, width), values),
            f"{LAYER}.lora_B.weight": torch.full((width, 2), values),
        }
    )


def request(**fields: object) -> generation_pb2.GenerateRequest:
    values = {"prompt": "a red apple", "steps": 2, "seed": 7, **fields}
    return generation_pb2.GenerateRequest(**values)  # type: ignore[arg-type]


def blend(**weights: float) -> generation_pb2.Blend:
    return generation_pb2.Blend(
        entries=[generation_pb2.BlendEntry(adapter=name, weight=weight) for name, weight in weights.items()]
    )


def details(error: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo, dict[str, str]]:
    """The ErrorInfo and the {field: description} of a failed call."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None, "no details"
    info, violations = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(violations)
    assert info.domain == "loramux" and info.reason
    return info, {violation.field: violation.description for violation in violations.field_violations}


def test_the_store_was_seeded_and_blends_draw_other_pictures(server: Running, names: list[str]) -> None:
    assert len(names) == 4
    one, other = names[0], names[1]
    drawn = [
        server.pictures.Generate(request(blend=b, steps=8)).images[0].data
        for b in (blend(), blend(**{one: 0.8}), blend(**{one: 0.8, other: 0.4}), blend(**{one: 0.8}))
    ]
    assert drawn[0].startswith(b"\x89PNG") and len(set(drawn)) == 3 and drawn[1] == drawn[3]


def test_the_response_says_what_was_applied(server: Running, names: list[str]) -> None:
    response = server.pictures.Generate(request(blend=blend(**{names[0]: 0.5}), num_images=2))
    (applied,) = response.applied.adapters
    version = server.shelf.GetAdapter(adapter_service_pb2.GetAdapterRequest(name=names[0])).latest_version
    assert (applied.adapter, applied.version, applied.digest, applied.weight) == (names[0], 1, version.digest, 0.5)
    info = server.pictures.GetServerInfo(generation_service_pb2.GetServerInfoRequest())
    assert response.applied.base_digest == info.base_digest
    assert (info.family, info.distilled) == ("sd1", "")
    assert [image.seed for image in response.images] == [7, 8]
    assert response.timings.total_seconds >= response.timings.denoise_seconds > 0


def test_the_server_says_what_it_is_and_can_do(server: Running) -> None:
    info = server.pictures.GetServerInfo(generation_service_pb2.GetServerInfoRequest())
    left_out = {field.name for field in info.DESCRIPTOR.fields} - {field.name for field, _ in info.ListFields()}
    assert left_out == {"distilled", "inpainting", "takes_size_conditioning"}, "no such thing on this base"
    for part in (info.limits, info.defaults):
        assert len(part.ListFields()) == len(part.DESCRIPTOR.fields)
    assert [told.sampler for told in info.sampler_infos] == list(info.samplers) == list(range(1, 11))
    assert all(told.sigma_schedules[0] == generation_pb2.SIGMA_SCHEDULE_UNSPECIFIED for told in info.sampler_infos)
    assert info.library_versions["torch"] == version("torch") and len(info.image_formats) == 4


def test_a_stream_tells_the_whole_story_in_order(server: Running) -> None:
    events = list(server.pictures.GenerateStream(request(steps=3)))
    assert [event.WhichOneof("event") for event in events] == [
        "queued",
        "started",
        "step",
        "step",
        "step",
        "image",
        "done",
    ]
    assert [event.step.step for event in events if event.HasField("step")] == [1, 2, 3]


@pytest.mark.parametrize(
    "fields,bad",
    [
        ({"steps": -1}, {"steps": "is -1, expected 1 to 200"}),
        ({"blend": {"ink": float("nan")}}, {"blend.entries[0].weight": "is nan, expected -16.0 to 16.0"}),
        ({"blend": {"ink": float("inf")}}, {"blend.entries[0].weight": "is inf, expected -16.0 to 16.0"}),
        (
            {"width": 10_000, "height": 10_000},
            {side: "is 10000, expected a multiple of 4 from 16 to 1024" for side in ("width", "height")},
        ),
        ({"width": 65}, {"width": "is 65, expected a multiple of 4 from 16 to 1024"}),
        ({"prompt": " ", "blend": {"ink": 1.0}}, {"prompt": "is empty, expected text where the blend lists adapters"}),
        ({"guidance_scale": float("nan")}, {"guidance_scale": "is nan, expected 0 to 50.0"}),
        ({"num_images": 0, "seed": -3}, {"num_images": "is 0, expected 1 to 16", "seed": None}),
        ({"sampler": 77}, {"sampler": "is 77, expected one of [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]"}),
        ({"prompt": "x" * 10_001}, {"prompt": "has 10001 characters, expected at most 10000"}),
        ({"blend": {"": 1.0}}, {"blend.entries[0].adapter": None}),
        (
            {"size_conditioning": generation_pb2.SizeConditioning(original_width=1)},
            {"size_conditioning": "is given, the base builtin takes none"},
        ),
    ],
)
def test_bad_fields_are_named(server: Running, fields: dict[str, object], bad: dict[str, str | None]) -> None:
    weights = fields.pop("blend", None)
    if isinstance(weights, dict):
        entries = [generation_pb2.BlendEntry(adapter=name, weight=weight) for name, weight in weights.items()]
        fields["blend"] = generation_pb2.Blend(entries=entries)
    for method in (server.pictures.Generate, lambda asked: list(server.pictures.GenerateStream(asked))):
        with pytest.raises(grpc.RpcError) as caught:
            method(request(**fields))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        _, violations = details(caught.value)
        assert violations.keys() == bad.keys()
        assert all(text is None or violations[field] == text for field, text in bad.items())
    assert server.pictures.Generate(request()).images


@pytest.mark.parametrize(
    "reference,code,said",
    [
        ("nobody", grpc.StatusCode.NOT_FOUND, "'nobody'"),
        ("ink@99", grpc.StatusCode.NOT_FOUND, "'ink' has no version 99"),
        ("ink@prod", grpc.StatusCode.NOT_FOUND, "'ink' has no alias 'prod'"),
        ("../etc/passwd", grpc.StatusCode.INVALID_ARGUMENT, "'../etc/passwd'"),
    ],
)
def test_unknown_adapters_are_named(server: Running, reference: str, code: grpc.StatusCode, said: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.pictures.Generate(request(blend=blend(**{reference: 1.0})))
    assert caught.value.code() == code
    assert said in (caught.value.details() or "")
    details(caught.value)


def test_the_same_version_twice_is_refused(server: Running, names: list[str]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.pictures.Generate(request(blend=blend(**{names[0]: 1.0, f"{names[0]}@1": 1.0})))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert list(details(caught.value)[1]) == ["blend.entries[1].adapter"]


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (self.path, "w")


def bad_uploads(folder: Path) -> dict[str, tuple[bytes, dict[str, object], grpc.StatusCode, str]]:
    """Name: file, fields of the spec, expected code, expected reason."""
    good, code = adapter_file(), grpc.StatusCode
    header = json.dumps({"a": {"dtype": "F7", "shape": [1], "data_offsets": [0, 1]}}).encode()
    return {
        "truncated": (good[:-10], {}, code.INVALID_ARGUMENT, "size_mismatch"),
        "stopped-early": (good[:-10], {"size_bytes": len(good)}, code.INVALID_ARGUMENT, "size_mismatch"),
        "too-many-bytes": (good, {"size_bytes": len(good) - 1}, code.RESOURCE_EXHAUSTED, "too_large"),
        "pickle": (pickle.dumps(Bomb(str(folder / "bomb"))), {}, code.INVALID_ARGUMENT, "pickle_not_allowed"),
        "wrong-sha256": (good, {"sha256": "0" * 64}, code.DATA_LOSS, "checksum_mismatch"),
        "nan": (adapter_file(float("nan")), {}, code.INVALID_ARGUMENT, "non_finite"),
        "web-page": (b"<!DOCTYPE html><html></html>", {}, code.INVALID_ARGUMENT, "html_page"),
        "odd-dtype": (struct.pack("<Q", len(header)) + header + b"x", {}, code.INVALID_ARGUMENT, "unknown_dtype"),
    }


@pytest.mark.parametrize("case", bad_uploads(Path()))
def test_bad_uploads_are_refused_with_the_reason_and_leave_nothing(
    server: Running, names: list[str], case: str, tmp_path: Path
) -> None:
    file, spec, code, reason = bad_uploads(tmp_path)[case]
    with pytest.raises(grpc.RpcError) as caught:
        server.upload("refused", file, **spec)
    assert (caught.value.code(), details(caught.value)[0].reason) == (code, reason)
    assert not (tmp_path / "bomb").exists()
    listed = server.shelf.ListAdapters(adapter_service_pb2.ListAdaptersRequest())
    assert "refused" not in [adapter.name for adapter in listed.adapters]
    assert server.pictures.Generate(request()).images


@pytest.mark.parametrize("name", ["", "UPPER", "../up", "a" * 65, "-a"])
def test_bad_names_are_refused(server: Running, name: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.upload(name, adapter_file())
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert list(details(caught.value)[1]) == ["name"]


def test_an_upload_without_its_spec_is_refused(server: Running) -> None:
    chunk = adapter_service_pb2.UploadAdapterRequest(chunk=b"x")
    for messages in ([], [chunk]):
        with pytest.raises(grpc.RpcError) as caught:
            server.shelf.UploadAdapter(iter(messages))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert list(details(caught.value)[1]) == ["spec"]


def test_an_adapter_lives_and_dies_over_the_wire(server: Running) -> None:
    first = server.upload("mine", adapter_file(0.3), default_weight=0.5, trigger_words=["zap"])
    assert (first.version.number, first.created, first.version.rank) == (1, True, 2)
    assert [matched.module for matched in first.report.matched] == [LAYER]
    assert not server.upload("mine", adapter_file(0.3)).created
    assert server.upload("mine", adapter_file(0.2)).version.number == 2
    entry = generation_pb2.BlendEntry(adapter="mine@1")
    response = server.pictures.Generate(request(blend=generation_pb2.Blend(entries=[entry])))
    assert (response.applied.adapters[0].digest, response.applied.adapters[0].weight) == (first.version.digest, 0.5)
    versions = server.shelf.ListVersions(adapter_service_pb2.ListVersionsRequest(name="mine")).versions
    assert [version.number for version in versions] == [2, 1]
    server.shelf.DeleteAdapter(adapter_service_pb2.DeleteAdapterRequest(name="mine"))
    with pytest.raises(grpc.RpcError) as caught:
        server.shelf.GetAdapter(adapter_service_pb2.GetAdapterRequest(name="mine"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_an_alias_draws_with_the_version_it_means(server: Running, names: list[str]) -> None:
    changed = adapter_pb2.Adapter(name=names[0], aliases={"prod": 1})
    server.shelf.UpdateAdapter(adapter_service_pb2.UpdateAdapterRequest(adapter=changed), timeout=10)
    blend = generation_pb2.Blend(entries=[generation_pb2.BlendEntry(adapter=f"{names[0]}@prod")])
    request = generation_pb2.GenerateRequest(prompt="x", blend=blend, steps=1, seed=1)
    (applied,) = server.pictures.Generate(request, timeout=60).applied.adapters
    assert (applied.adapter, applied.version) == (names[0], 1)
    blend.entries[0].adapter = f"{names[0]}@next"
    with pytest.raises(grpc.RpcError) as caught:
        server.pictures.Generate(generation_pb2.GenerateRequest(prompt="x", blend=blend), timeout=60)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_an_embedding_acts_in_requests_that_list_it(server: Running) -> None:
    info = server.pictures.GetServerInfo(generation_service_pb2.GetServerInfoRequest())
    width = info.text_widths["text_encoder"]
    vectors = torch.randn(2, width, generator=torch.Generator().manual_seed(1))
    plain = server.pictures.Generate(request(prompt="a fizzle dog"))
    uploaded = server.upload("fizz", save({"emb_params": vectors}), trigger="fizzle")
    assert uploaded.version.kind == adapter_pb2.ADAPTER_KIND_EMBEDDING and uploaded.version.rank == 0
    assert uploaded.report.embedding == uploaded.version.embedding
    listed = server.pictures.Generate(request(prompt="a Fizzle dog", blend=blend(fizz=1.0)))
    (applied,) = listed.applied.adapters
    assert (applied.kind, applied.trigger) == (adapter_pb2.ADAPTER_KIND_EMBEDDING, "fizzle")
    assert server.pictures.Generate(request(prompt="a fizzle dog")).images[0].data == plain.images[0].data
    assert listed.images[0].data != plain.images[0].data
    text = Image.open(io.BytesIO(listed.images[0].data)).info["parameters"]
    assert f'TI hashes: "fizzle: {uploaded.version.blob_digest[:12]}"' in text and "lora" not in text
    with pytest.raises(grpc.RpcError) as caught:
        server.pictures.Generate(request(prompt="a dog", blend=blend(fizz=1.0)))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    said = "is the embedding fizz@1, expected its trigger 'fizzle' in prompt or negative_prompt"
    assert details(caught.value)[1] == {"blend.entries[0].adapter": said}
    with pytest.raises(grpc.RpcError) as caught:
        server.upload("wrong", adapter_file(), trigger="fizzle")
    assert "options.trigger" in details(caught.value)[1]


def test_checking_a_file_publishes_nothing(server: Running) -> None:
    response = server.upload("checked", adapter_file(), validate_only=True)
    assert len(response.report.matched) == 1 and not response.HasField("version")
    with pytest.raises(grpc.RpcError):
        server.shelf.GetAdapter(adapter_service_pb2.GetAdapterRequest(name="checked"))


def test_an_adapter_for_another_base_is_kept_but_not_drawn_with(server: Running) -> None:
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    file = save({f"{key}.lora_down.weight": torch.ones(1, 768), f"{key}.lora_up.weight": torch.ones(320, 1)})
    assert server.upload("for-sd1", file).version.layout == "sd1"
    with pytest.raises(grpc.RpcError) as caught:
        server.pictures.Generate(request(blend=blend(**{"for-sd1": 1.0})))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert details(caught.value)[0].reason == "LAYOUT_MISMATCH"
    assert "sd1" in (caught.value.details() or "")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "did not happen within 30 s"
        time.sleep(0.05)


def test_cancelling_a_stream_frees_its_rows(server: Running) -> None:
    before = server.metric('loramux_requests_total{outcome="cancelled"}')
    stream = server.pictures.GenerateStream(request(steps=200))
    for event in stream:
        if event.HasField("step"):
            break
    stream.cancel()
    wait_for(lambda: server.metric('loramux_requests_total{outcome="cancelled"}') == before + 1)
    assert server.metric("loramux_requests_in_flight") == 0 and server.metric("loramux_images_running") == 0


def test_a_deadline_frees_its_rows(server: Running) -> None:
    """At a size that was not drawn before, so that nobody knows how long it takes."""
    limits = server.pictures.GetServerInfo(generation_service_pb2.GetServerInfoRequest()).limits
    before = server.metric('loramux_requests_total{outcome="cancelled"}')
    with pytest.raises(grpc.RpcError) as caught:
        server.pictures.Generate(request(steps=200, num_images=16, width=limits.max_side // 2), timeout=0.5)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_for(lambda: server.metric('loramux_requests_total{outcome="cancelled"}') == before + 1)
    assert server.metric("loramux_requests_in_flight") == 0


def test_a_deadline_that_cannot_be_made_is_told_at_once(server: Running) -> None:
    server.pictures.Generate(request(steps=10))
    before = server.metric('loramux_rejected_total{reason="DEADLINE_TOO_SHORT"}')
    for call in (server.pictures.Generate, lambda *a, **k: list(server.pictures.GenerateStream(*a, **k))):
        with pytest.raises(grpc.RpcError) as caught:
            call(request(steps=200, num_images=16), timeout=0.3)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert details(caught.value)[0].reason == "DEADLINE_TOO_SHORT"
        assert "the deadline is in 0." in (caught.value.details() or "")
    assert server.metric('loramux_rejected_total{reason="DEADLINE_TOO_SHORT"}') == before + 2
    assert server.metric("loramux_requests_in_flight") == 0
    assert server.metric("loramux_speed") > 0
    assert server.pictures.Generate(request(steps=2), timeout=60).images


def test_priorities_are_taken_and_counted(server: Running) -> None:
    for name in ("INTERACTIVE", "NORMAL", "BATCH", "UNSPECIFIED"):
        counted = (name if name != "UNSPECIFIED" else "NORMAL").lower()
        before = server.metric(f'loramux_admitted_total{{priority="{counted}"}}')
        waits = server.metric(f'loramux_request_queue_seconds_count{{priority="{counted}"}}')
        server.pictures.Generate(request(priority=f"PRIORITY_{name}"))
        assert server.metric(f'loramux_admitted_total{{priority="{counted}"}}') == before + 1
        assert server.metric(f'loramux_request_queue_seconds_count{{priority="{counted}"}}') == waits + 1


def test_a_full_queue_says_when_to_come_back_and_a_short_drain_ends_what_runs(tmp_path: Path) -> None:
    """A queue of two is full; then the server stops, and what outlasts the drain hears why it ended."""
    running = start(tmp_path / "store", "--max-queue", "2", "--drain-seconds", "0.1")
    stream = running.pictures.GenerateStream(request(steps=200, num_images=2))
    next(iter(stream))
    with pytest.raises(grpc.RpcError) as caught:
        running.pictures.Generate(request())
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    assert status is not None and any(d.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for d in status.details)
    running.process.send_signal(signal.SIGTERM)
    with pytest.raises(grpc.RpcError) as caught:
        list(stream)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert details(caught.value)[0].reason == "DRAINING"
    assert stop(running) == 0


def test_a_stopping_server_finishes_what_runs_and_takes_nothing_new(tmp_path: Path) -> None:
    running = start(tmp_path / "store")
    stream = running.pictures.GenerateStream(request(steps=60))
    next(iter(stream))
    running.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    with pytest.raises(grpc.RpcError) as caught:
        running.pictures.Generate(request())
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert [event.WhichOneof("event") for event in stream][-2:] == ["image", "done"]
    assert stop(running) == 0


def test_a_taken_port_is_told_in_one_line(server: Running, tmp_path: Path) -> None:
    command = [*CLI, "serve", "--store", str(tmp_path), "--metrics-port", "0"]
    port = server.target.rpartition(":")[2]
    taken = subprocess.run([*command, "--port", port], capture_output=True, text=True, timeout=60)
    assert taken.returncode == 1 and "Traceback" not in taken.stderr
    (told,) = (line for line in taken.stderr.splitlines() if line.startswith("loramux: "))  # gRPC says something, too
    assert f"127.0.0.1:{port}" in told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--base", "FOLDER"], "model_index.json"),
        (["--base", "/nope"], "base /nope is no folder and no file"),
        (
            ["--device", "cuda"],
            f"device is 'cuda', and torch {torch.__version__} is built without CUDA; expected cpu, or auto",
        ),
        (["--host", "0.0.0.0"], "host: 0.0.0.0 can be reached from other machines."),
        (["--pool-bytes", "1048576"], "pool_bytes is 1048576, expected at least "),
    ],
)
def test_a_setting_that_does_not_suit_is_told_in_one_line(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, whose memory and log stay as they are."""
    monkeypatch.setattr(memory, "keep_freed", lambda: None)
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    given = [option.replace("FOLDER", str(tmp_path)) for option in options]
    assert cli.main(["serve", "--store", str(tmp_path / "store"), "--metrics-port", "0", *given]) == 2
    told = capsys.readouterr().err
    assert told.startswith("loramux: ") and said in told and told.count("\n") == 1


def test_health_and_http(server: Running, names: list[str]) -> None:
    health = health_pb2_grpc.HealthStub(server.channel)
    for service in ("", "loramux.v1.GenerationService", "loramux.v1.AdapterService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert server.get("/livez") == server.get("/readyz") == "ok\n"
    assert server.get("/version").strip()
    assert server.metric("loramux_engine_up") == 1
    server.pictures.Generate(request(blend=blend(**{names[0]: 1.0}), steps=1))
    assert server.metric('loramux_adapters_resident{tier="device"}') >= 1


def test_a_silent_connection_holds_up_no_probe(server: Running) -> None:
    host, port = server.http.split(":")
    with socket.create_connection((host, int(port))):
        assert server.get("/livez") == "ok\n"


def test_a_generic_client_works_through_reflection(server: Running) -> None:
    buf = Path(sys.executable).parent / "buf"
    url = f"http://{server.target}/loramux.v1.GenerationService/Generate"
    body = json.dumps({"prompt": "a red apple", "steps": 2, "seed": 7})
    done = subprocess.run(
        [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--data", body, url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"][0]["format"] == "IMAGE_FORMAT_PNG"


def test_previews_are_streamed_and_left_out_of_unary_calls(server: Running) -> None:
    asked = generation_pb2.GenerateRequest(prompt="a red apple", steps=5, seed=7, preview_every=2)
    events = list(server.pictures.GenerateStream(asked))
    previews = [event.preview for event in events if event.WhichOneof("event") == "preview"]
    assert [(p.image_index, p.step) for p in previews] == [(0, 2), (0, 4)]
    assert all(p.jpeg[:2] == b"\xff\xd8" for p in previews)
    (image,) = server.pictures.Generate(asked).images
    (streamed,) = [event.image for event in events if event.WhichOneof("event") == "image"]
    assert image.data == streamed.data


def test_everything_asked_is_applied_and_told(server: Running) -> None:
    asked = generation_pb2.GenerateRequest(
        prompt="a (red:1.3) apple",
        prompt_syntax=generation_pb2.PROMPT_SYNTAX_PLAIN,
        long_prompt=generation_pb2.LONG_PROMPT_CUT,
        clip_skip=1,
        sampler=generation_pb2.SAMPLER_HEUN,
        sigma_schedule=generation_pb2.SIGMA_SCHEDULE_EXPONENTIAL,
        steps=2,
        guidance_scale=2.5,
        guidance_rescale=0.5,
        seed=7,
        image_format=generation_pb2.IMAGE_FORMAT_JPEG,
        quality=60,
        omit_parameters=True,
    )
    made = server.pictures.Generate(asked)
    for field in (
        "prompt_syntax", "long_prompt", "clip_skip", "sampler", "sigma_schedule", "steps", "guidance_scale",
        "guidance_rescale", "seed",
    ):  # fmt: skip
        assert getattr(made.applied, field) == getattr(asked, field), field
    (image,) = made.images
    assert image.format == generation_pb2.IMAGE_FORMAT_JPEG and image.data[:2] == b"\xff\xd8"
    assert b"Exif" not in image.data
    asked.sampler, asked.sigma_schedule = generation_pb2.SAMPLER_EULER, generation_pb2.SIGMA_SCHEDULE_UNSPECIFIED
    asked.ClearField("steps")
    asked.timesteps.extend([900, 300])
    applied = server.pictures.Generate(asked).applied
    assert list(applied.timesteps) == [900, 300] and applied.steps == 2
    for field in ("sigma_schedule", "prompt_syntax", "long_prompt", "image_format", "priority"):
        wrong = generation_pb2.GenerateRequest(prompt="x", **{field: 99})
        with pytest.raises(grpc.RpcError) as caught:
            server.pictures.Generate(wrong)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert details(caught.value)[1].keys() == {field}


def picture(side: int, *, noisy: bool = False) -> bytes:
    """A PNG of one colour or of noise."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    (Image.fromarray(pixels) if noisy else Image.new("RGB", (side, side), "white")).save(file, "PNG")
    return file.getvalue()


def test_an_image_is_drawn_over_and_told_of(server: Running, names: list[str]) -> None:
    image, mask = picture(64, noisy=True), picture(32)
    for fields in ({}, {"mask": mask, "mask_blur": 2.0}):
        asked = request(steps=10, image=image, strength=0.6, blend=blend(**{names[0]: 0.8}), **fields)
        events = list(server.pictures.GenerateStream(asked))
        steps = [(event.step.step, event.step.total) for event in events if event.HasField("step")]
        assert steps == [(step, 6) for step in range(1, 7)]
        (applied,) = [event.started.applied for event in events if event.HasField("started")]
        assert (applied.strength, applied.mask_blur) == (0.6, fields.get("mask_blur", 0.0))
        assert applied.image_sha256 == hashlib.sha256(image).hexdigest()
        assert applied.mask_sha256 == (hashlib.sha256(mask).hexdigest() if fields else "")
    assert not server.pictures.Generate(request()).applied.HasField("strength")


def test_images_of_many_bytes_are_taken_and_too_many_refused(server: Running) -> None:
    """More than gRPC's own limit of 4 MiB a message; beyond ours the field is named."""
    large = picture(1800, noisy=True)
    assert len(large) > 9 << 20
    info = server.pictures.GetServerInfo(generation_service_pb2.GetServerInfoRequest())
    assert len(large) <= info.limits.max_image_bytes and not info.inpainting
    assert server.pictures.Generate(request(image=large, mask=large, width=64, height=64)).images
    with pytest.raises(grpc.RpcError) as caught:
        server.pictures.Generate(request(image=bytes(info.limits.max_image_bytes + 1), mask=b"x"))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert details(caught.value)[1].keys() == {"image", "mask"}


def test_the_command_line_draws_over_an_image(server: Running, tmp_path: Path) -> None:
    image, mask, out = tmp_path / "image.png", tmp_path / "mask.png", tmp_path / "out.png"
    image.write_bytes(picture(64, noisy=True))
    mask.write_bytes(picture(64))
    options = ["--image", image, "--mask", mask, "--strength", "0.5", "--seed", "7", "--steps", "4", "-o", out]
    done = subprocess.run(
        [*CLI, "generate", "a red apple", "--server", server.target, *options],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    want = request(steps=4, image=image.read_bytes(), mask=mask.read_bytes(), strength=0.5)
    assert out.read_bytes() == server.pictures.Generate(want).images[0].data


def test_the_command_line_draws_a_blend(server: Running, names: list[str], tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    done = subprocess.run(
        [
            *CLI,
            "generate",
            "a red apple",
            "--server",
            server.target,
            "--seed",
            "7",
            "--steps",
            "4",
            "-o",
            out,
            "--adapter",
            f"{names[0]}=0.8",
            "--adapter",
            f"{names[1]}=0.4",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    want = server.pictures.Generate(request(blend=blend(**{names[0]: 0.8, names[1]: 0.4}), steps=4))
    assert out.read_bytes() == want.images[0].data


def test_many_clients_at_once_while_adapters_come_and_go(server: Running, names: list[str]) -> None:
    """Uploads and deletions beside drawing: nobody fails, everybody gets the picture they would get alone."""
    asked = [request(blend=blend(**{name: weight}), steps=4) for name in names for weight in (0.5, 1.0)]
    alone = [server.pictures.Generate(one).images[0].data for one in asked]

    def churn(number: int) -> None:
        server.upload(f"churn-{number}", adapter_file(0.1 * number))
        server.pictures.Generate(request(blend=blend(**{f"churn-{number}": 1.0})))
        server.shelf.DeleteAdapter(adapter_service_pb2.DeleteAdapterRequest(name=f"churn-{number}"))

    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        churning = [threads.submit(churn, number) for number in range(1, 5)]
        together = list(threads.map(lambda one: server.pictures.Generate(one).images[0].data, asked * 2))
        for job in churning:
            job.result()
    for one, other in zip(alone * 2, together, strict=True):
        a, b = (np.asarray(Image.open(io.BytesIO(data))).astype(int) for data in (one, other))
        assert np.abs(a - b).max() <= 1


@pytest.mark.long
def test_a_push_survives_a_server_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL in the middle of an upload; the same command line, still running, finishes it on the next server."""
    first = start(tmp_path / "store")
    file = tmp_path / "large.safetensors"
    file.write_bytes(
        save(
            {
                f"{LAYER}.lora_A.weight": torch.ones(128, 48),
                f"{LAYER}.lora_B.weight": torch.ones(48, 128),
                "unused.lora_A.weight": torch.ones(4096, 8192),
            }
        )
    )
    push = subprocess.Popen(
        [*CLI, "adapters", "push", str(file), "--server", first.target],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: first.metric("loramux_upload_bytes_total") > 0)
    first.process.kill()
    first.process.wait()
    first.channel.close()
    assert first.process.stdout is not None
    first.process.stdout.close()
    (part,) = [path for path in (tmp_path / "store" / "uploads").glob("*.part") if path.stat().st_size]
    kept = part.stat().st_size
    assert 0 < kept < file.stat().st_size, "killed in the middle"
    second = start(tmp_path / "store", port=first.target.rpartition(":")[2])
    try:
        said, complained = push.communicate(timeout=60)
        # Refused for what makes it large, and so only after its sha256 was found right.
        assert push.returncode == 1 and "unused" in complained, (said, complained)
        assert second.metric("loramux_upload_bytes_total") == file.stat().st_size - kept
    finally:
        assert stop(second) == 0
