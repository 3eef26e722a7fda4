"""What is delivered: formats, quality, and what files say of how they were made."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from safetensors import safe_open
from safetensors.torch import load

from loramux_server.engine.pictures import decode
from loramux_server.errors import InvalidRequest
from loramux_server.requests import (
    BlendEntry,
    GenerationRequest,
    ImageFormat,
    ImageReady,
    Output,
    Sampler,
    SigmaSchedule,
    TextMode,
)

ASKED = GenerationRequest(
    "a (red:1.2) apple, ümläut",
    negative_prompt="a dog",
    blend=(BlendEntry("attention", 0.8), BlendEntry("convolution", -0.25)),
    sampler=Sampler.DPMPP_2M_SDE,
    sigma_schedule=SigmaSchedule.KARRAS,
    steps=3,
    guidance_scale=4.5,
    guidance_rescale=0.25,
    seed=7,
    num_images=2,
    text_mode=TextMode(clip_skip=1),
)


def files(server: Any, request: GenerationRequest) -> list[bytes]:
    handle = server.submit(request)
    handle.pictures() if request.output.format != ImageFormat.LATENTS else handle._ended.wait(60)
    ready = sorted((e for e in handle.events if isinstance(e, ImageReady)), key=lambda e: e.index)
    assert {e.format for e in ready} == {request.output.format}
    return [e.data for e in ready]


def text_in(data: bytes) -> str | None:
    picture = Image.open(io.BytesIO(data))
    if picture.format == "PNG":
        return picture.text.get("parameters")
    comment = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if comment is None:
        return None
    assert comment[:8] == b"UNICODE\0"
    return comment[8:].decode("utf-16-be")


def test_files_say_what_they_were_made_with(server: Any) -> None:
    base, version = server.app.engine.base, server.app.version
    digests = [server.app.store.resolve(name).blob_digest[:12] for name in ("attention", "convolution")]
    for format in (ImageFormat.PNG, ImageFormat.JPEG, ImageFormat.WEBP):
        first, second = files(server, replace(ASKED, output=Output(format)))
        assert text_in(first) == (
            "a (red:1.2) apple, ümläut <lora:attention:0.8> <lora:convolution:-0.25>\n"
            "Negative prompt: a dog\n"
            "Steps: 3, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 4.5, CFG Rescale: 0.25, Seed: 7, "
            f"Size: 32x32, Clip skip: 2, Model hash: {base.digest[:10]}, Model: {base.name}, "
            f'Lora hashes: "attention: {digests[0]}, convolution: {digests[1]}", Version: LoRAMux {version}'
        )
        assert "Seed: 8" in (text_in(second) or "")


def test_a_plain_request_says_little(server: Any) -> None:
    (data,) = files(server, GenerationRequest("a dog", negative_prompt="unused", steps=1, seed=1, guidance_scale=1.0))
    first, second = text_in(data).splitlines()
    assert first == "a dog" and second.startswith("Steps: 1, Sampler: DPM++ 2M, CFG scale: 1, Seed: 1, Size: 32x32, ")


def test_files_may_say_nothing(server: Any) -> None:
    for format in (ImageFormat.PNG, ImageFormat.JPEG, ImageFormat.WEBP):
        said, silent = (files(server, replace(ASKED, output=Output(format, parameters=p)))[0] for p in (True, False))
        assert text_in(said) and text_in(silent) is None and b"apple" not in silent
        pixels = [np.asarray(Image.open(io.BytesIO(data))) for data in (said, silent)]
        assert np.array_equal(*pixels)


def test_formats_are_what_they_are_called_and_quality_matters(server: Any) -> None:
    (png, *_) = files(server, ASKED)
    exact = np.asarray(Image.open(io.BytesIO(png)))
    for format in (ImageFormat.JPEG, ImageFormat.WEBP):
        low, high = (files(server, replace(ASKED, output=Output(format, quality=q)))[0] for q in (5, 98))
        assert Image.open(io.BytesIO(low)).format == format.name and len(low) < len(high)
        far, near = (np.abs(np.asarray(Image.open(io.BytesIO(d))).astype(int) - exact).mean() for d in (low, high))
        assert near < far


def test_latents_are_those_the_picture_is_decoded_from(server: Any, tmp_path: Any) -> None:
    (png, *_) = files(server, ASKED)
    (raw, *_) = files(server, replace(ASKED, output=Output(ImageFormat.LATENTS)))
    latents = load(raw)["latents"]
    assert latents.dtype == torch.float32 and latents.shape == (4, 16, 16)
    picture = np.asarray(decode(server.app.engine.base.vae, latents[None]))
    assert np.abs(picture.astype(int) - np.asarray(Image.open(io.BytesIO(png)))).max() <= 1
    (tmp_path / "x.safetensors").write_bytes(raw)
    with safe_open(tmp_path / "x.safetensors", framework="pt") as opened:
        assert opened.metadata()["parameters"] == text_in(png)


@pytest.mark.parametrize("quality", [0, 101])
def test_a_quality_out_of_range_is_refused(server: Any, quality: int) -> None:
    with pytest.raises(InvalidRequest, match=f"quality: is {quality}, expected 1 to 100"):
        server.admission.admit(replace(ASKED, output=Output(ImageFormat.JPEG, quality)))
