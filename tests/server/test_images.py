"""Images that requests bring: what is taken and how it is read, what is refused and with which words."""

import io
import struct
import zlib
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from loramux_server import images
from loramux_server.errors import InvalidRequest
from loramux_server.requests import GenerationRequest, ImageFormat, Sampler, Stepped

RNG = np.random.default_rng(0)
PIXELS = np.kron(RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))  # 48 wide, 32 high
PICTURE = Image.fromarray(PIXELS)
WHITE = Image.new("L", (16, 16), 255)


def file_of(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


PNG, MASK = file_of(PICTURE), file_of(WHITE)
PLAIN = GenerationRequest("a dog", image=PNG, seed=1, steps=4)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claiming(width: int, height: int) -> bytes:
    """A small PNG whose header says how large it is."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))


def image_of(data: bytes) -> np.ndarray:
    brought = images.decode(GenerationRequest("", image=data))
    assert brought.image is not None, brought.violations
    return np.asarray(brought.image)


def mask_of(data: bytes) -> np.ndarray:
    brought = images.decode(GenerationRequest("", mask=data))
    assert brought.mask is not None, brought.violations
    return np.asarray(brought.mask)


def test_every_format_is_read() -> None:
    assert np.array_equal(image_of(PNG), PIXELS)
    assert np.array_equal(image_of(file_of(PICTURE, "WEBP", lossless=True)), PIXELS)
    assert np.abs(image_of(file_of(PICTURE, "JPEG", quality=100, subsampling=0)).astype(int) - PIXELS).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_pictures_stand_upright(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {"lossless": True}
    # What is stored for an orientation: Exif says at which sides the first row and the first column belong.
    stored = PIXELS.transpose(1, 0, 2) if orientation >= 5 else PIXELS
    if orientation in (3, 4, 6, 7):  # the first row at the bottom, or at the right
        stored = stored[::-1]
    if orientation in (2, 3, 7, 8):  # the first column at the right, or at the bottom
        stored = stored[:, ::-1]
    data = file_of(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif, **options)
    got = image_of(data)
    assert got.shape == PIXELS.shape and np.abs(got.astype(int) - PIXELS).mean() < 5


def test_a_turned_picture_gives_its_upright_size(server: Any) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    job = server.admission.admit(replace(PLAIN, image=file_of(PICTURE, "JPEG", exif=exif)))
    assert (job.width, job.height) == (32, 48)


def test_what_is_transparent_is_white_in_an_image_and_black_in_a_mask() -> None:
    red = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    red.putpixel((0, 0), (255, 0, 0, 255))
    red.putpixel((1, 0), (255, 0, 0, 51))
    for data in (file_of(red), file_of(red, "WEBP", lossless=True, exact=True)):
        assert image_of(data)[0, :3].tolist() == [[255, 0, 0], [255, 204, 204], [255, 255, 255]]
    hole = Image.new("LA", (2, 1), (255, 0))
    hole.putpixel((0, 0), (255, 255))
    assert mask_of(file_of(hole)).tolist() == [[255, 0]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    assert image_of(file_of(palette, transparency=0)).tolist() == [[[255, 255, 255], [0, 255, 0]]]


def test_grey_colourless_and_deep_pictures_are_read() -> None:
    assert image_of(file_of(Image.new("L", (1, 1), 77))).tolist() == [[[77, 77, 77]]]
    assert image_of(file_of(Image.new("1", (1, 1), 1))).tolist() == [[[255, 255, 255]]]
    assert image_of(file_of(Image.new("CMYK", (8, 8)), "JPEG"))[0, 0].tolist() == [255, 255, 255]
    deep = Image.fromarray(np.array([[0, 128, 257 * 100, 65535]], dtype=np.uint16))
    assert mask_of(file_of(deep)).tolist() == [[0, 0, 100, 255]]


REFUSED = {
    "empty": (b"", "is 0 bytes that are no PNG, JPEG or WebP"),
    "text": (b"a picture...", "is 12 bytes that are no PNG, JPEG or WebP"),
    "gif": (file_of(PICTURE, "GIF"), "bytes that are no PNG, JPEG or WebP"),
    "cut off": (PNG[: len(PNG) // 2], "bytes of a damaged file"),
    "header only": (PNG[:20], "is 20 bytes of a damaged file"),
    "too many bytes": (b"\x89PNG" + bytes(images.MAX_BYTES), "has 16777220 bytes, expected at most 16777216"),
    "too many pixels": (claiming(6000, 6000), "is 6000x6000, expected at most 33554432 pixels"),
    "a bomb": (claiming(30_000, 30_000), "is too large to decode, expected at most 33554432 pixels"),
    "nearly a bomb": (claiming(10_000, 10_000), "expected at most 33554432 pixels"),
}


@pytest.mark.parametrize("field", ["image", "mask"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_picture_is_refused(server: Any, case: str, field: str) -> None:
    data, said = REFUSED[case]
    with pytest.raises(InvalidRequest) as caught:
        server.admission.admit(replace(PLAIN, **{field: data}))
    (violation,) = caught.value.violations
    assert violation.field == field and said in violation.description


@pytest.mark.parametrize(
    "asked,bad",
    [
        ({"strength": 1.5}, {"strength": "is 1.5, expected 0 to 1"}),
        ({"strength": float("nan")}, {"strength": "is nan, expected 0 to 1"}),
        ({"strength": 0.2}, {"strength": "is 0.2, which leaves no step of 4, expected at least 1/4"}),
        ({"strength": 0.0, "sampler": Sampler.PNDM}, {"strength": "is 0.0, which leaves no step of 4"}),
        (
            {"strength": 0.5, "sampler": Sampler.HEUN, "steps": None, "timesteps": (999, 700, 400, 100)},
            {"strength": "is 0.5, which leaves no step of 7, expected at least 4/7"},
        ),
        ({"image": None, "strength": 0.5}, {"strength": "is given without image, expected both"}),
        ({"image": None, "mask": MASK}, {"mask": "is given without image, expected both"}),
        ({"mask_blur": 4.0}, {"mask_blur": "is given without mask, expected both"}),
        ({"mask": MASK, "mask_blur": 65.0}, {"mask_blur": "is 65.0, expected 0 to 64.0"}),
        ({"mask": b"x", "image": b"y", "steps": 0}, {"steps": "", "image": "is 1 bytes", "mask": "is 1 bytes"}),
        (
            {"image": file_of(Image.new("L", (2000, 3)))},
            {
                "width": "is 2000 as that of image, expected a multiple of 2 from 4 to 1024",
                "height": "is 2 as that of image, expected a multiple of 2 from 4 to 1024",
            },
        ),
        ({"width": 33}, {"width": "is 33, expected a multiple of 2 from 4 to 1024"}),
    ],
)
def test_fields_that_do_not_go_together_are_named(server: Any, asked: dict[str, Any], bad: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        server.admission.admit(replace(PLAIN, **asked))
    found = {violation.field: violation.description for violation in caught.value.violations}
    assert found.keys() == bad.keys()
    assert all(said in found[field] for field, said in bad.items()), found


def test_the_least_strength_leaves_one_step(server: Any) -> None:
    timesteps: dict[str, Any] = {"steps": None, "timesteps": (999, 700, 400, 100), "sampler": Sampler.HEUN}
    for asked in ({"strength": 1 / 4}, {"strength": 4 / 7 + 1e-9, **timesteps}):
        handle = server.submit(replace(PLAIN, **asked))
        handle.pictures()
        assert [e.total for e in handle.events if isinstance(e, Stepped)] == [1]


def test_an_inpainting_base_wants_image_and_mask_and_says_so(make_server: Any, tiny_inpainting_base: Path) -> None:
    server = make_server(tiny_inpainting_base)
    for asked, missing in (({"image": None}, {"image", "mask"}), ({}, {"mask"})):
        with pytest.raises(InvalidRequest) as caught:
            server.admission.admit(replace(PLAIN, **asked))
        assert {violation.field for violation in caught.value.violations} == missing
        assert all("is missing, expected since the base inpainting" in v.description for v in caught.value.violations)
    assert server.draw([replace(PLAIN, mask=MASK)])


def test_open_fields_take_their_defaults(server: Any) -> None:
    job = server.admission.admit(PLAIN)
    assert (job.width, job.height, job.sampling.strength) == (48, 32, 0.8)
    assert job.source is not None and job.source.mask is None
    assert np.array_equal(np.frombuffer(job.source.image, np.uint8).reshape(32, 48, 3), PIXELS)
    masked = server.admission.admit(replace(PLAIN, mask=MASK))
    assert masked.sampling.strength == 1.0 and masked.source.mask == b"\1" * (48 * 32)
    assert (masked.source.image_digest, masked.source.mask_digest) == (
        sha256(PNG).hexdigest(),
        sha256(MASK).hexdigest(),
    )
    assert "\\x" not in repr(masked), "pixels in what may be logged"


def test_progress_counts_the_steps_that_are_made(server: Any) -> None:
    for sampler, total in ((Sampler.DDIM, 6), (Sampler.HEUN, 11), (Sampler.PNDM, 7)):
        handle = server.submit(replace(PLAIN, steps=10, strength=0.6, sampler=sampler))
        handle.pictures()
        steps = [(event.step, event.total) for event in handle.events if isinstance(event, Stepped)]
        assert steps == [(step, total) for step in range(1, total + 1)]


def test_files_say_what_they_were_drawn_over_with(server: Any) -> None:
    for asked, said in (
        ({"strength": 0.6}, "Size: 48x32, Denoising strength: 0.6, Model hash"),
        ({"mask": MASK, "mask_blur": 4.0}, "Size: 48x32, Denoising strength: 1, Mask blur: 4, Model hash"),
        ({"mask": MASK}, "Size: 48x32, Denoising strength: 1, Model hash"),
    ):
        handle = server.submit(replace(PLAIN, **asked))
        handle.pictures()
        (data,) = [event.data for event in handle.events if hasattr(event, "data")]
        assert said in Image.open(io.BytesIO(data)).text["parameters"]
    assert PLAIN.output.format == ImageFormat.PNG


def test_images_are_encoded_beside_the_ticks(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    engine, threads = server.app.engine, list[str]()
    encode = engine.encode

    def encoding(*given: Any) -> Any:
        threads.append(threading.current_thread().name)
        return encode(*given)

    monkeypatch.setattr(engine, "encode", encoding)
    server.submit(replace(PLAIN, num_images=3)).pictures()
    server.draw([replace(PLAIN, image=None)])
    assert len(threads) == 1 and threads[0].startswith("vae")


def test_an_image_that_cannot_be_encoded_fails_its_own_request_only(
    server: Any, monkeypatch: pytest.MonkeyPatch, wait_for: Any
) -> None:
    engine = server.app.engine
    encode = engine.encode

    def failing(job: Any, source: Any) -> Any:
        if job.seed == 2:
            raise ValueError("no")
        return encode(job, source)

    monkeypatch.setattr(engine, "encode", failing)
    bad, good = server.submit(replace(PLAIN, seed=2)), server.submit(PLAIN)
    with pytest.raises(ValueError, match="no"):
        bad.pictures()
    assert good.pictures()
    wait_for(lambda: server.app.metrics.registry.get_sample_value("loramux_requests_in_flight") == 0)


def test_a_cancelled_request_is_gone_while_its_image_waits(server: Any, wait_for: Any) -> None:
    handles = [server.submit(replace(PLAIN, seed=seed, width=256, height=256)) for seed in range(4)]
    for handle in handles:
        server.runner.cancel(handle.job.id)
    wait_for(lambda: server.app.metrics.registry.get_sample_value("loramux_requests_in_flight") == 0)
    assert server.draw([PLAIN])
    assert not server.app.engine._images and not server.runner._scheduler.waiting
