"""What happens to a request's adapters, files and client while it is in flight, over gRPC."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from random_adapters import random_adapter
from wire import Watched, blend, distance, pixels, request

from loramux.v1 import generation_service_pb2_grpc
from loramux_server.engine.sampling import ImageSampler
from loramux_store.record import UploadSpec

STEPS, LONG = 6, 12


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Any, Any]:
    """Two of the same layers, which draw quite different pictures."""
    folder = tmp_path_factory.mktemp("adapters")
    one, other = (
        random_adapter(tiny_base, folder, name, rank=rank, alpha=4, strength=1.0, seed=rank, parts=("attn", "encoder."))
        for name, rank in (("one", 4), ("other", 6))
    )
    return one, other


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Watched]:
    server = Watched(tiny_base, tmp_path_factory.mktemp("flight") / "store")
    yield server
    server.close()


@pytest.fixture(autouse=True)
def shelf(server: Watched, adapters: tuple[Any, Any]) -> None:
    """Both adapters under their own names, and nothing on the device."""
    server.publish(adapters)
    server.app.engine.adapters.evict_unused()
    server.forwards.clear()


def delete(server: Watched, other: Any) -> None:
    server.app.store.delete_adapter("one")


def replace(server: Watched, other: Any) -> None:
    """Other bytes under the name."""
    server.app.store.publish(other.file, UploadSpec(name="one"))


def delete_and_reuse(server: Watched, other: Any) -> None:
    delete(server, other)
    replace(server, other)


@pytest.mark.parametrize("when", ["between its steps", "before it loads"])
@pytest.mark.parametrize("change", [delete, replace, delete_and_reuse])
def test_a_request_keeps_the_version_it_resolved(
    server: Watched, adapters: tuple[Any, Any], change: Any, when: str, wait_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, engine = request(1, STEPS, blend=blend(one=1.0)), server.app.engine
    want, others = server.draw(asked), server.draw(request(1, STEPS, blend=blend(other=1.0)))
    assert distance(want, others) > 1, "the adapters draw the same"
    digest = server.app.store.resolve("one").digest
    engine.adapters.evict_unused()
    server.going.clear()
    if when == "before it loads":
        load = engine.load
        monkeypatch.setattr(engine, "load", lambda job: (change(server, adapters[1]), load(job))[1])
    calling = server.pictures.Generate.future(asked, timeout=60)
    wait_for(lambda: engine._images)
    if when == "between its steps":
        change(server, adapters[1])
        engine.adapters.evict_unused()
    server.going.set()
    response = calling.result()
    monkeypatch.undo()
    assert response.applied.adapters[0].digest == digest
    assert distance(pixels(response.images[0]), want) <= 1
    if change is delete:
        with pytest.raises(grpc.RpcError) as caught:
            server.draw(asked)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    else:
        assert distance(server.draw(asked), others) <= 1
    wait_for(server.nothing_is_left)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-500] ^= 64
    file.write_bytes(data)


@pytest.mark.parametrize("harm", [Path.unlink, cut, flip])
def test_a_compiled_file_that_is_gone_or_damaged_is_made_again(server: Watched, harm: Callable[[Path], None]) -> None:
    asked = request(1, 2, blend=blend(one=1.0))
    want = server.draw(asked)
    version = server.app.store.resolve("one")
    file = server.app.store.compiled(version)
    whole = file.read_bytes()
    server.app.engine.adapters.evict_unused()
    harm(file)
    assert np.array_equal(server.draw(asked), want)
    assert file.read_bytes() == whole


def test_a_blob_that_is_gone_is_not_missed_while_its_compiled_file_is_whole(server: Watched) -> None:
    asked = request(1, 2, blend=blend(one=1.0))
    want = server.draw(asked)
    version = server.app.store.resolve("one")
    server.app.engine.adapters.evict_unused()
    blob = next((server.app.settings.store / "blobs").rglob(version.blob_digest))
    whole = blob.read_bytes()
    blob.unlink()
    assert np.array_equal(server.draw(asked), want)
    blob.write_bytes(whole)


@pytest.mark.parametrize("how", ["cancelled", "disconnected"])
def test_who_leaves_gives_its_rows_back_at_the_next_tick(
    server: Watched, how: str, wait_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = server.draw(request(1, LONG))
    before = server.metric("requests_total", outcome="cancelled")
    told: list[str] = []
    end_soon = server.app.runner._end_soon
    monkeypatch.setattr(server.app.runner, "_end_soon", lambda job, *rest: (end_soon(job, *rest), told.append(job))[0])
    staying = server.pictures.Generate.future(request(1, LONG), timeout=60)
    wait_for(lambda: frozenset({1}) in server.forwards)
    server.going.clear()
    channel = server.connect()
    pictures = generation_service_pb2_grpc.GenerationServiceStub(channel)
    leaving = pictures.GenerateStream(request(2, 200, num_images=3, blend=blend(one=1.0)))
    server.culprit, server.pauses = 2, True
    wait_for(server.knocks)
    server.going.set()
    assert any(event.HasField("step") for event in leaving)
    leaving.cancel() if how == "cancelled" else channel.close()
    wait_for(lambda: told)
    left = len(server.forwards)
    server.going.set()
    assert distance(pixels(staying.result().images[0]), want) <= 1
    channel.close()
    wait_for(server.nothing_is_left)
    assert frozenset({1, 2}) in server.forwards[:left], "they did not share a forward"
    later = [2 in forward for forward in server.forwards[left:]]
    assert len(later) >= 3 and not any(later[1:]), "only the tick that had begun goes on with it"
    assert server.metric("requests_total", outcome="cancelled") == before + 1


def test_a_preview_that_cannot_be_foreseen_is_left_out(server: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(1, 4, preview_every=2)
    want = server.draw(asked)
    assert [event.WhichOneof("event") for event in server.pictures.GenerateStream(asked)].count("preview") == 1
    foreseen = ImageSampler.foreseen
    monkeypatch.setattr(ImageSampler, "foreseen", lambda *given: foreseen(*given) * torch.nan)
    events = list(server.pictures.GenerateStream(asked))
    assert [event.WhichOneof("event") for event in events] == ["queued", "started", *["step"] * 4, "image", "done"]
    assert distance(pixels(events[-2].image), want) <= 1
