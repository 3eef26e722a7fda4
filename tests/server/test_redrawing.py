"""Image to image and inpainting equal diffusers' own pipelines with the same adapters through PEFT."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from peer_schedulers import peer_scheduler
from PIL import Image

from loramux_server.engine.sampling import sigma_schedules, takes_timesteps
from loramux_server.requests import BlendEntry, GenerationRequest, Sampler, SigmaSchedule

pytestmark = [
    # PEFT warns of every adapter after the first.
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),
    pytest.mark.filterwarnings("ignore:timesteps:UserWarning"),
]

STRENGTHS = (0.3, 0.8, 1.0)
SIDE = 32
NAMES = ("everything", "attention", "convolution")
BLENDS = (
    tuple(BlendEntry(name, weight) for name, weight in zip(NAMES, (0.7, -0.4, 0.9), strict=True)),
    (BlendEntry("everything", 1.0),),
    (),
)


def photo(seed: int = 0, size: tuple[int, int] = (50, 41)) -> Image.Image:
    """Small blocks of colour with sharp edges, which show how they were resized."""
    blocks = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def stencil(size: tuple[int, int] = (48, 48)) -> Image.Image:
    """Grey levels on both sides of the middle, black and white."""
    grey = Image.radial_gradient("L").resize(size)
    return Image.fromarray(255 - np.asarray(grey))


def file_of(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


PHOTO, STENCIL = file_of(photo()), file_of(stencil())


class Peer:
    """A pipeline of diffusers on a base, with adapters loaded by its own loader."""

    def __init__(self, kind: Any, base: Path, adapters: Sequence[Any]) -> None:
        self.pipe: Any = kind.from_pretrained(base, safety_checker=None, dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self.config = self.pipe.scheduler.config
        for adapter in adapters:
            self.pipe.load_lora_weights(adapter.file, adapter_name=adapter.name)

    def draw(self, request: GenerationRequest, seed: int | None = None) -> np.ndarray:
        assert request.sampler and request.image and request.seed is not None and request.strength is not None
        self.pipe.scheduler = peer_scheduler(request, self.config)
        if request.blend:
            self.pipe.enable_lora()
            self.pipe.set_adapters([e.adapter for e in request.blend], [e.weight for e in request.blend])
        elif self.pipe.get_list_adapters():
            self.pipe.disable_lora()
        picture = Image.open(io.BytesIO(request.image))
        width, height = request.width or picture.width // 2 * 2, request.height or picture.height // 2 * 2
        asked: dict[str, Any] = {"image": self.pipe.image_processor.resize(picture, height, width)}
        if request.mask is not None:
            mask = Image.open(io.BytesIO(request.mask))
            if request.mask_blur:
                mask = self.pipe.mask_processor.blur(mask, request.mask_blur)
            asked = {"image": picture, "mask_image": mask, "width": width, "height": height}
        image = self.pipe(
            request.prompt,
            negative_prompt=request.negative_prompt or None,
            strength=request.strength,
            num_inference_steps=request.steps,
            timesteps=list(request.timesteps) or None,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(request.seed if seed is None else seed),
            **asked,
        ).images[0]
        return np.asarray(image)


def distance(one: np.ndarray, other: np.ndarray) -> int:
    """Largest difference of any pixel, in 255ths."""
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


PLAIN = GenerationRequest(
    "a red apple", negative_prompt="a dog", image=PHOTO, strength=0.8, sampler=Sampler.DDIM, steps=7, seed=7,
    guidance_scale=4.0, width=SIDE, height=SIDE,
)  # fmt: skip
MASKED = replace(PLAIN, mask=STENCIL)


def check_equal(server: Any, peer: Peer, asked: Sequence[GenerationRequest]) -> list[np.ndarray]:
    drawn = server.draw(asked)
    for request, got in zip(asked, drawn, strict=True):
        assert distance(got, peer.draw(request)) <= 1, request
    return drawn


Trio = tuple[Any, Peer, Peer]


@pytest.fixture(scope="module", params=["tiny_base", pytest.param("other_tiny_base", marks=pytest.mark.long)])
def trio(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, three_adapters: Any, server_class: Any
) -> Iterator[Trio]:
    """Our server and two pipelines of diffusers, image to image and inpainting, on one base with the same adapters."""
    base, folder = request.getfixturevalue(request.param), tmp_path_factory.mktemp("redrawing")
    adapters = three_adapters(base, folder, 0.5)
    server = server_class(str(base), folder / "store")
    server.publish(adapters)
    yield (
        server,
        Peer(StableDiffusionImg2ImgPipeline, base, adapters),
        Peer(StableDiffusionInpaintPipeline, base, adapters),
    )
    server.close()


@pytest.fixture(scope="module")
def painter(
    tiny_inpainting_base: Path, tmp_path_factory: pytest.TempPathFactory, three_adapters: Any, server_class: Any
) -> Iterator[tuple[Any, Peer]]:
    """Our server and diffusers' inpainting pipeline on a base with nine channels."""
    folder = tmp_path_factory.mktemp("painter")
    adapters = three_adapters(tiny_inpainting_base, folder, 0.5)
    server = server_class(str(tiny_inpainting_base), folder / "store")
    server.publish(adapters)
    yield server, Peer(StableDiffusionInpaintPipeline, tiny_inpainting_base, adapters)
    server.close()


def variants(plain: GenerationRequest) -> list[GenerationRequest]:
    """Every sampler at every strength; guidance and blends take turns."""
    return [
        replace(
            plain,
            sampler=sampler,
            strength=strength,
            guidance_scale=(4.0, 1.0)[index % 2],
            blend=BLENDS[(index + index // 3) % 3],
        )
        for index, (sampler, strength) in enumerate(product(Sampler, STRENGTHS))
    ]


@pytest.mark.parametrize("plain", [PLAIN, MASKED], ids=["img2img", "inpainting"])
def test_pictures_equal_the_peers(plain: GenerationRequest, trio: Trio) -> None:
    """All in one stream, so rows of every kind share forwards."""
    server, img2img, inpainting = trio
    drawn = check_equal(server, inpainting if plain.mask else img2img, variants(plain))
    assert len({picture.tobytes() for picture in drawn}) == len(drawn) == 30, "two requests draw the same picture"


def test_pictures_of_an_inpainting_base_equal_the_peers(painter: tuple[Any, Peer]) -> None:
    server, peer = painter
    drawn = check_equal(server, peer, variants(MASKED))
    assert len({picture.tobytes() for picture in drawn}) == len(drawn) == 30, "two requests draw the same picture"


def test_blends_images_and_strengths_act(trio: Trio) -> None:
    """Else equal pictures would say nothing."""
    server, *_ = trio
    (plain, blended, elsewhere, weak, masked) = server.draw(
        [
            PLAIN,
            replace(PLAIN, blend=BLENDS[0]),
            replace(PLAIN, image=file_of(photo(1))),
            replace(PLAIN, strength=0.3),
            replace(MASKED, strength=0.8),
        ]
    )
    assert min(distance(plain, other) for other in (blended, elsewhere, weak, masked)) >= 20


@pytest.mark.parametrize("plain", [PLAIN, MASKED], ids=["img2img", "inpainting"])
def test_spreads_of_noise_levels_and_given_timesteps_equal_the_peers(plain: GenerationRequest, trio: Trio) -> None:
    server, img2img, inpainting = trio
    asked = [
        replace(plain, sampler=sampler, sigma_schedule=schedule)
        for sampler in Sampler
        for schedule in sigma_schedules(sampler)
        if schedule != SigmaSchedule.BASE
    ]
    asked += [
        replace(plain, sampler=sampler, steps=None, timesteps=(999, 800, 600, 400, 200, 30))
        for sampler in Sampler
        if takes_timesteps(sampler)
    ]
    assert len(asked) == 24
    check_equal(server, inpainting if plain.mask else img2img, asked)


@pytest.mark.parametrize("plain", [PLAIN, MASKED], ids=["img2img", "inpainting"])
def test_several_pictures_are_those_of_consecutive_seeds(plain: GenerationRequest, trio: Trio) -> None:
    server, img2img, inpainting = trio
    request = replace(plain, sampler=Sampler.EULER_ANCESTRAL, num_images=3, blend=BLENDS[1])
    pictures = server.submit(request).pictures()
    peer = inpainting if plain.mask else img2img
    assert max(distance(got, peer.draw(request, 7 + index)) for index, got in enumerate(pictures)) <= 1
    assert len({picture.tobytes() for picture in pictures}) == 3


def test_the_size_is_that_of_the_image_where_none_is_asked_for(trio: Trio) -> None:
    server, img2img, inpainting = trio
    for plain, peer in ((PLAIN, img2img), (MASKED, inpainting)):
        (drawn,) = check_equal(server, peer, [replace(plain, width=None, height=None)])
        assert drawn.shape == (40, 50, 3)
        check_equal(server, peer, [replace(plain, width=36, height=None)])


def test_blur_moves_the_edge_of_the_mask_as_the_peer_does(trio: Trio, painter: tuple[Any, Peer]) -> None:
    for server, peer in ((trio[0], trio[2]), painter):
        drawn = check_equal(server, peer, [replace(MASKED, mask_blur=blur) for blur in (0.0, 4.0, 9.5)])
        assert len({picture.tobytes() for picture in drawn}) == 3


def test_what_is_not_redrawn_stays(trio: Trio) -> None:
    """Black everywhere gives the image back, as far as the VAE can; white everywhere redraws all of it."""
    server, *_ = trio
    black, white = (file_of(Image.new("L", (8, 8), grey)) for grey in (0, 255))
    same, again, other = server.draw(
        [replace(MASKED, mask=mask, prompt=prompt) for mask, prompt in ((black, "a dog"), (black, ""), (white, ""))]
    )
    assert distance(same, again) <= 1 and distance(same, other) >= 20


def test_levels_from_half_white_on_are_redrawn(trio: Trio) -> None:
    server, *_ = trio
    masks = [file_of(Image.new("L", (SIDE, SIDE), grey)) for grey in (0, 127, 128, 255)]
    black, below, half, white = server.draw([replace(MASKED, mask=mask) for mask in masks])
    assert np.array_equal(black, below) and np.array_equal(half, white) and distance(black, white) >= 20


@pytest.fixture
def companies(trio: Trio, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[set[str]]]:
    """For every forward so far, the kinds of rows in it."""
    engine, seen = trio[0].app.engine, list[set[str]]()
    step, begin, kinds = engine.step, engine.begin, dict[str, str]()

    def beginning(job: Any, *rest: Any) -> None:
        kinds[job.id] = "text" if job.source is None else "image" if job.source.mask is None else "mask"
        begin(job, *rest)

    def stepping(keys: Any) -> Any:
        seen.append({kinds[key.job] for key in keys})
        return step(keys)

    monkeypatch.setattr(engine, "begin", beginning)
    monkeypatch.setattr(engine, "step", stepping)
    return lambda: seen


def test_pictures_are_the_same_alone_and_in_mixed_company(trio: Trio, companies: Callable[[], list[set[str]]]) -> None:
    server, *_ = trio
    starts = [{"image": None, "strength": None}, {"strength": 0.5}, {"mask": STENCIL, "strength": 0.9}]
    samplers = [Sampler.DDIM, Sampler.EULER_ANCESTRAL, Sampler.DPMPP_2M, Sampler.HEUN]
    asked = [
        replace(PLAIN, seed=seed, blend=BLENDS[(seed // 3) % 3], sampler=samplers[seed % 4], **starts[seed % 3])  # type: ignore[arg-type]
        for seed in range(24)
    ]
    alone = [server.draw([request])[0] for request in asked]
    assert all(len(company) == 1 for company in companies())
    companies().clear()
    company = server.draw(asked)
    assert sum(len(kinds) == 3 for kinds in companies()) >= 3, "the forwards did not mix kinds of rows"
    assert max(distance(one, other) for one, other in zip(alone, company, strict=True)) <= 1
