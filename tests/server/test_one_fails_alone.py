"""Whatever goes wrong with one request, over gRPC: it alone fails, with its own status; its company in the same
forwards get the pictures they would get without it, nothing is left behind, and the server goes on."""

import io
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from PIL import Image
from random_adapters import random_adapter
from safetensors.torch import save_file
from wire import Watched, blend, distance, pixels, reason_of, request

from loramux.v1 import generation_pb2
from loramux_server.engine import pictures
from loramux_server.engine.sampling import ImageSampler

BAD = 666
"""Seed of the request that fails."""
STEPS = 4
"""Its steps."""
LONG = 14
"""Steps of the others: they run before it comes, beside it, and after it has failed."""

Code = grpc.StatusCode


COMPANY = (
    request(1, LONG),
    request(2, LONG, blend=blend(attention=1.0), guidance_scale=1.0),
    request(3, LONG, blend=blend(everything=-0.6, convolution=0.8), negative_blend=blend(attention=0.5)),
)
SEEDS = frozenset(one.seed for one in COMPANY)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


NOISE = png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
LEFT_HALF = png(np.repeat(np.array([[255] * 16 + [0] * 16] * 32, np.uint8)[..., None], 3, axis=2))


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, three_adapters: Any, lost: Any
) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("alone")
    server = Watched(tiny_base, folder / "store")
    server.publish([*three_adapters(tiny_base, folder, 0.5), lost])
    layers = {path: layer for group in server.app.engine.groups.values() for path, layer in group.layers.items()}
    for name, value, path in (
        ("huge", 1e30, "unet.conv_in"),
        ("largest", 3e38, "unet.mid_block.attentions.0.proj_in"),
        ("huge-text", 1e30, "text_encoder.text_model.encoder.layers.0.self_attn.v_proj"),
    ):
        shape = layers[path].spec.shape
        server.publish([of_one_number(folder, name, value, path, shape)])
    server.culprit = BAD
    yield server
    server.close()


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Any:
    """An adapter that nobody in the company uses."""
    folder = tmp_path_factory.mktemp("lost")
    return random_adapter(tiny_base, folder, "lost", rank=3, alpha=3, strength=0.5, seed=9, parts=("attn", "proj_"))


def of_one_number(folder: Path, name: str, value: float, path: str, shape: tuple[int, ...]) -> Any:
    """An adapter of one layer, whose numbers are finite."""
    file = folder / f"{name}.safetensors"
    a = torch.full((1, *shape[1:]), value)
    b = torch.full((shape[0], 1, *(1,) * (len(shape) - 2)), value)
    save_file({f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}, file)
    return SimpleNamespace(name=name, file=file)


@pytest.fixture(scope="module")
def alone(server: Watched) -> list[np.ndarray]:
    """The company's pictures without the one that fails, each drawn alone."""
    drawn = [server.draw(one) for one in COMPANY]
    assert min(distance(drawn[0], other) for other in drawn[1:]) > 1, "a blend does nothing"
    return drawn


# what goes wrong

Breaking = Callable[[Watched, pytest.MonkeyPatch], AbstractContextManager[None]]


def when_predicted(then: Callable[[Watched, Any], None]) -> Breaking:
    """Before a forward in which the request at fault takes part."""

    @contextmanager
    def breaking(server: Watched, patch: pytest.MonkeyPatch) -> Generator[None]:
        predict = server.app.engine._predict

        def broken(keys: Any) -> Any:
            for key in keys:
                if server.seed(key) == BAD:
                    server.forwards.append(frozenset(map(server.seed, keys)))
                    then(server, server.app.engine._images[key])
            return predict(keys)

        patch.setattr(server.app.engine, "_predict", broken)
        yield

    return breaking


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


def out_of_memory() -> Callable[..., Any]:
    return raising(torch.OutOfMemoryError("CUDA out of memory"))


def in_the_vae(method: str, name: str, then: Callable[..., Any]) -> Breaking:
    """In a method of the VAE while the engine's `method` works on the job at fault."""

    @contextmanager
    def breaking(server: Watched, patch: pytest.MonkeyPatch) -> Generator[None]:
        engine = server.app.engine
        whole = getattr(engine, method)

        def broken(job: Any, *rest: Any) -> Any:
            with pytest.MonkeyPatch.context() as inner:
                if job.seed == BAD:
                    inner.setattr(engine.base.vae, name, then)
                return whole(job, *rest)

        patch.setattr(engine, method, broken)
        yield

    return breaking


@contextmanager
def in_nothing(server: Watched, patch: pytest.MonkeyPatch) -> Generator[None]:
    """The request itself is the fault."""
    yield


@contextmanager
def at_the_last_step(server: Watched, patch: pytest.MonkeyPatch) -> Generator[None]:
    advance = ImageSampler.advance

    def broken(self: ImageSampler, prediction: torch.Tensor) -> None:
        advance(self, prediction)
        if self.total == self.position == STEPS:
            self.latents = self.latents * torch.inf

    patch.setattr(ImageSampler, "advance", broken)
    yield


@contextmanager
def in_the_image(server: Watched, patch: pytest.MonkeyPatch) -> Generator[None]:
    engine = server.app.engine
    encode = engine.encode

    def broken(job: Any, source: Any) -> Any:
        latents = encode(job, source)
        if job.seed == BAD:
            latents.image.distribution.mean[..., 0, 0] = torch.nan
        return latents

    patch.setattr(engine, "encode", torch.inference_mode()(broken))
    yield


@contextmanager
def in_the_file(server: Watched, patch: pytest.MonkeyPatch) -> Generator[None]:
    encode = pictures.encode

    def broken(picture: Any, output: Any, text: str) -> bytes:
        if f"Seed: {BAD}" in text:
            raise OSError("encoder error -2")
        return encode(picture, output, text)

    patch.setattr(pictures, "encode", broken)
    yield


@contextmanager
def in_the_prompt(server: Watched, patch: pytest.MonkeyPatch) -> Generator[None]:
    conditioner = server.app.engine.conditioner
    given = conditioner.given
    patch.setattr(conditioner, "given", lambda job, *rest: (out_of_memory() if job.seed == BAD else given)(job, *rest))
    yield


@contextmanager
def in_the_pool(server: Watched, patch: pytest.MonkeyPatch) -> Generator[None]:
    server.app.engine.adapters.evict_unused()
    patch.setattr(server.app.engine.groups["unet.feed_forward"], "write", out_of_memory())
    yield


def on_the_disk(**ruined: Callable[[Path], object]) -> Breaking:
    """The adapter's files, once the request is admitted and before it loads; they are mended afterwards."""

    @contextmanager
    def breaking(server: Watched, patch: pytest.MonkeyPatch) -> Generator[None]:
        files = files_of(server, "lost")
        whole = {file: file.read_bytes() for file in files.values()}
        engine = server.app.engine
        engine.adapters.evict_unused()
        load = engine.load

        def late(job: Any) -> Any:
            for kind, ruin in ruined.items() if job.seed == BAD else ():
                files[kind].chmod(0o644)
                ruin(files[kind])
            return load(job)

        patch.setattr(engine, "load", late)
        yield
        for file, data in whole.items():
            file.write_bytes(data)

    return breaking


def files_of(server: Watched, name: str) -> dict[str, Path]:
    version, store = server.app.store.resolve(name), server.app.settings.store
    return {"compiled": server.app.store.compiled(version), "blob": next((store / "blobs").rglob(version.blob_digest))}


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)


# and what is told of it


@dataclass(frozen=True)
class Case:
    """How it fails. finite: which of its rows were in its last forward; stepped: whether it came to one at all."""

    breaking: Breaking
    said: str
    code: Code = Code.INTERNAL
    reason: str = "PICTURE_FAILED"
    asked: dict[str, Any] = field(default_factory=dict)
    finite: list[bool] | None = None
    stepped: bool = True


def no_memory(breaking: Breaking, what: str, *, stepped: bool = False, **asked: Any) -> Case:
    said = f"{what} does not fit into device memory"
    return Case(breaking, said, Code.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", asked, stepped=stepped)


def data_loss(breaking: Breaking, said: str) -> Case:
    asked = {"blend": blend(lost=1.0)}
    said = f"{said}; adapter lost@1 cannot be loaded"
    return Case(breaking, said, Code.DATA_LOSS, "BLOB_DAMAGED", asked, stepped=False)


def fill(server: Watched, image: Any) -> None:
    if image.sampler.position == 2:
        image.sampler.latents[..., 0, 0] = torch.nan


NAN = (torch.full((1, 3, 32, 32), torch.nan),)
OVER = {"image": NOISE, "mask": LEFT_HALF, "strength": 0.999}
CASES = {
    "nan in its latents": Case(when_predicted(fill), "picture 0 became non-finite at step 3", finite=[False, False]),
    "weights of 1e30": Case(
        in_nothing,
        "picture 0 became non-finite at step 1",
        asked={"blend": blend(huge=1.0, attention=1.0), "negative_blend": blend(attention=1.0)},
        finite=[True, False],
    ),
    "weights of 1e30 in its unconditional row": Case(
        in_nothing,
        "picture 0 became non-finite at step 1",
        asked={"negative_blend": blend(huge=1.0)},
        finite=[False, True],
    ),
    "the largest weights there are": Case(
        in_nothing, "picture 0 became non-finite at step 1", asked={"blend": blend(largest=16.0)}, finite=[False] * 2
    ),
    "weights of 1e30 in the text encoder": Case(
        in_nothing,
        "picture 0 became non-finite at step 1",
        asked={"blend": blend(**{"huge-text": 1.0})},
        finite=[False] * 2,
    ),
    "nan in the image it starts from": Case(in_the_image, "became non-finite at step", asked=OVER, finite=[False] * 2),
    "inf at its last step": Case(at_the_last_step, f"became non-finite at step {STEPS}", finite=[True] * 2),
    "nan out of the decoder": Case(
        in_the_vae("deliver", "decode", lambda *_, **__: NAN), "became non-finite when it was decoded"
    ),
    "no memory for its forward": no_memory(when_predicted(out_of_memory()), "picture 0", stepped=True),
    "no memory for its prompt": no_memory(in_the_prompt, "prompt"),
    "no memory for its image": no_memory(in_the_vae("encode", "encode", out_of_memory()), "image", **OVER),
    "no memory for its decoding": no_memory(
        in_the_vae("deliver", "decode", out_of_memory()), "picture 0", stepped=True
    ),
    "no memory for its adapter": no_memory(in_the_pool, "adapter lost@1", blend=blend(lost=1.0)),
    "an error in its forward": Case(
        when_predicted(raising(RuntimeError("secret"))), "picture 0 failed in its forward: RuntimeError"
    ),
    "an error in the decoder": Case(
        in_the_vae("deliver", "decode", raising(RuntimeError("secret"))), "picture 0 could not be decoded"
    ),
    "an error in the file's encoder": Case(in_the_file, "picture 0 could not be decoded"),
    "an error in the image's encoder": Case(
        in_the_vae("encode", "encode", raising(RuntimeError("secret"))),
        "internal error",
        reason="INTERNAL",
        asked=OVER,
        stepped=False,
    ),
    "compiled file and blob are gone": data_loss(
        on_the_disk(compiled=Path.unlink, blob=Path.unlink), "the file is gone"
    ),
    "compiled file and blob are changed": data_loss(
        on_the_disk(compiled=flip_a_bit, blob=flip_a_bit), "the file now has sha256 [0-9a-f]{64}"
    ),
}


_drawn: dict[bytes, np.ndarray] = {}


def drawn_once(server: Watched, asked: generation_pb2.GenerateRequest) -> np.ndarray:
    """Its picture on a server that nothing is wrong with."""
    key = asked.SerializeToString(deterministic=True)
    if key not in _drawn:
        _drawn[key] = server.draw(asked)
    return _drawn[key]


@pytest.mark.parametrize("name", CASES)
def test_only_the_request_at_fault_fails(
    server: Watched, alone: list[np.ndarray], name: str, wait_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    bad = request(BAD, STEPS, **case.asked)
    want = None if case.breaking is in_nothing else drawn_once(server, bad)
    failures = server.metric("requests_total", outcome="failed")
    server.forwards.clear()
    company = [server.pictures.Generate.future(one, timeout=60) for one in COMPANY]
    wait_for(lambda: SEEDS in server.forwards)
    with monkeypatch.context() as patch, case.breaking(server, patch):
        server.going.clear()
        failing = server.pictures.Generate.future(bad, timeout=60)
        wait_for(lambda: server.knocks() or failing.done())
        server.going.set()
        with pytest.raises(grpc.RpcError) as caught:
            failing.result()
        drawn = [pixels(one.result().images[0]) for one in company]
    assert (caught.value.code(), reason_of(caught.value)) == (case.code, case.reason)
    told = caught.value.details() or ""
    assert re.search(case.said, told) and "secret" not in told
    assert any(forward >= SEEDS | {BAD} for forward in server.forwards) is case.stepped, "it was not in their forwards"
    assert SEEDS in server.forwards[server.ended :], "the others ended before it failed"
    assert case.finite is None or server.finite == case.finite
    assert max(distance(one, other) for one, other in zip(alone, drawn, strict=True)) <= 1
    assert server.metric("requests_total", outcome="failed") == failures + 1
    wait_for(server.nothing_is_left)
    if want is not None:
        assert distance(server.draw(bad), want) <= 1
