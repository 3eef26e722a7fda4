"""Pictures as people have them, and broken ones: read as they are seen, or refused with their names and the reason."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as chances
from hypothesis import strategies as st
from picture_folders import codes, line, picture, surveyed
from PIL import Image, ImageCms, ImageOps

from loramux_train.data import reading
from loramux_train.data.notes import DataError
from loramux_train.data.reading import Unreadable, look, read

WHITE = (255, 255, 255)
RED = (255, 0, 0)


def _levels(path: Path, ground: tuple[int, int, int] = WHITE) -> np.ndarray:
    return np.asarray(read(path, ground).rgb).astype(int)


def test_a_turned_picture_is_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "black")
    image.paste(RED, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter to the right
    image.save(tmp_path / "a.png", exif=exif)
    looks = look(tmp_path / "a.png")
    assert (looks.width, looks.height) == (20, 40)
    shown = read(tmp_path / "a.png", WHITE)
    assert shown.full_size == shown.rgb.size == (20, 40)
    assert shown.rgb.getpixel((10, 5)) == RED
    assert shown.rgb.getpixel((10, 35)) == (0, 0, 0)


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_as_pillow_turns_it(tmp_path: Path, orientation: int) -> None:
    path = picture(tmp_path / "plain.png", (40, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(tmp_path / "a.png", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))
    assert np.array_equal(_levels(tmp_path / "a.png"), np.asarray(expected))
    looks = look(tmp_path / "a.png")
    assert (looks.width, looks.height) == expected.size


def test_files_that_would_run_a_program_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "EPS"
    with pytest.raises(Unreadable, match="of a kind that is not known"):
        look(tmp_path / "a.png")


def test_a_turned_jpeg_keeps_enough_pixels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1600, 400)).save(tmp_path / "a.jpg", exif=exif)
    shown = read(tmp_path / "a.jpg", WHITE, (50, 200))
    assert shown.rgb.size == (100, 400)
    assert shown.full_size == (400, 1600)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_show_the_ground(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 8, 16))
    image.convert(mode).save(tmp_path / "a.png")
    shown = read(tmp_path / "a.png", (10, 200, 30))
    assert shown.rgb.getpixel((2, 2)) == (10, 200, 30)
    assert shown.rgb.getpixel((12, 2)) == (0, 0, 0)
    assert shown.opacity.getpixel((2, 2)) == 0


def test_a_palette_with_one_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(0, (0, 0, 8, 16))
    image.save(tmp_path / "a.gif", transparency=0)
    assert read(tmp_path / "a.gif", WHITE).rgb.getpixel((2, 2)) == WHITE
    assert read(tmp_path / "a.gif", WHITE).rgb.getpixel((12, 2)) == RED


def test_cmyk_is_shown_in_its_colours(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(_levels(tmp_path / "a.jpg") - RED).max() <= 2


def test_sixteen_bits_keep_their_greys(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 16 * 16).astype(np.uint16).reshape(16, 16)
    for ending in ("png", "tif"):
        path = tmp_path / f"a.{ending}"
        Image.fromarray(ramp).save(path)
        assert np.abs(_levels(path)[..., 0] - ramp / 257).max() <= 0.5


def test_floating_point_and_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 16), 0.5, np.float32)).save(tmp_path / "a.tif")
    assert set(np.unique(_levels(tmp_path / "a.tif"))) == {128}
    Image.fromarray(np.full((16, 16), 300.0, np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(Unreadable, match="from 300 to 300, expected 0 to 1"):
        read(tmp_path / "b.tif", WHITE)
    Image.new("1", (16, 16), 1).save(tmp_path / "c.png")
    assert set(np.unique(_levels(tmp_path / "c.png"))) == {255}


def test_another_colour_space_comes_to_srgb(tmp_path: Path) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    swapped = Image.new("RGB", (16, 16), (90, 60, 30))
    swapped.save(tmp_path / "plain.png")
    swapped.save(tmp_path / "srgb.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    swapped.save(tmp_path / "wrong.png", icc_profile=lab)
    swapped.save(tmp_path / "damaged.png", icc_profile=b"no profile")
    plain = _levels(tmp_path / "plain.png")
    assert np.array_equal(_levels(tmp_path / "srgb.png"), plain)
    assert np.array_equal(_levels(tmp_path / "damaged.png"), plain)
    swapped.save(tmp_path / "wide.png", icc_profile=_linear_profile())
    assert (_levels(tmp_path / "wide.png") > plain + 50).all()  # linear numbers are brighter than they look


def _linear_profile() -> bytes:
    """A profile of sRGB's primaries with linear numbers: the sRGB one with other curves."""
    whole = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", whole, 128)[0]
    for index in range(count):
        at = 132 + 12 * index
        name, offset, _ = struct.unpack_from(">4sII", whole, at)
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            whole[offset : offset + 12] = struct.pack(">4sII", b"curv", 0, 0)
            struct.pack_into(">I", whole, at + 8, 12)
        if name == b"desc":
            whole[offset:] = whole[offset:].replace("sRGB".encode("utf-16-be"), "line".encode("utf-16-be"))
    return bytes(whole)


def test_of_an_animation_the_first_frame_is_used_and_told(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "a.txt").write_text("a cat")
    assert read(tmp_path / "a.gif", WHITE).rgb.getpixel((0, 0)) == RED
    found = surveyed(tmp_path)
    assert not found.errors
    assert "a.gif" in line(found, "frames")


def test_forty_thousand_pixels_wide_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (40_000, 64), RED).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a wall")
    found = surveyed(tmp_path)
    assert not found.errors
    assert "cropped" in codes(found, "warning")


def _claims(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, without the pixels."""
    whole = io.BytesIO()
    Image.new("L", (1, 1)).save(whole, format="PNG")
    data = bytearray(whole.getvalue())
    struct.pack_into(">II", data, 16, width, height)
    struct.pack_into(">I", data, 29, zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def test_what_would_fill_the_memory_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_claims(40_000, 40_000))
    (tmp_path / "a.txt").write_text("a wall")
    told = line(surveyed(tmp_path), "broken")
    assert "a.png: 40000x40000 px, 1600 million pixels, more than the 134 million" in told


def test_a_large_jpeg_is_decoded_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (1600, 800), RED).save(tmp_path / "a.jpg")
    monkeypatch.setattr(reading, "MOST_PIXELS", 800 * 400)
    shown = read(tmp_path / "a.jpg", WHITE, (100, 50))
    assert shown.rgb.size == (200, 100)
    assert shown.full_size == (1600, 800)
    with pytest.raises(Unreadable, match="1600x800 px"):
        read(tmp_path / "a.jpg", WHITE)


def test_pillows_own_limit_is_put_back(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    picture(tmp_path / "a.png", caption="x")
    surveyed(tmp_path)
    assert before == Image.MAX_IMAGE_PIXELS is not None


def _saved(ending: str) -> bytes:
    whole = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(whole, format=ending, **({"exif": exif} if ending in ("JPEG", "PNG", "WEBP") else {}))
    return whole.getvalue()


WHOLE = {ending: _saved(ending) for ending in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")}


@chances(max_examples=150)
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    st.floats(0.3, 1),
)
def test_damage_anywhere_gives_a_picture_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, ending: str, damage: list[tuple[float, int]], kept: float
) -> None:
    data = bytearray(WHOLE[ending])
    for place, value in damage:
        data[int(place * len(data))] = value
    path = tmp_path_factory.getbasetemp() / f"damaged.{ending.lower()}"
    path.write_bytes(data[: int(len(data) * kept)])
    try:
        looks = look(path)
        shown = read(path, WHITE)
    except Unreadable as unreadable:
        assert str(unreadable)
    else:
        assert shown.rgb.mode == "RGB"
        assert shown.full_size == (looks.width, looks.height)


def test_a_damaged_second_page_is_a_reason(tmp_path: Path) -> None:
    pages = [Image.new("L", (24, 24), level) for level in (10, 20)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert look(tmp_path / "a.tif").frames == 2
    data = bytearray((tmp_path / "a.tif").read_bytes())
    width = struct.pack("<HHI", 256, 4, 1)  # the tag of a page's width, a number of four bytes
    second = data.rindex(width)
    assert second != data.index(width)
    data[second] ^= 0xFF  # no tag that is known
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(Unreadable, match="damaged: "):
        look(tmp_path / "a.tif")


def _truncated_jpeg() -> bytes:
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, format="JPEG")
    return whole.getvalue()[: len(whole.getvalue()) // 2]


def _whole_png() -> bytes:
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, format="PNG")
    return whole.getvalue()


def _cut_png() -> bytes:
    return _whole_png()[: len(_whole_png()) // 2]


def _flipped_png() -> bytes:
    data = bytearray(_whole_png())
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


def _speck() -> bytes:
    whole = io.BytesIO()
    Image.new("RGB", (1, 1)).save(whole, format="PNG")
    return whole.getvalue()


BROKEN = {
    "truncated.jpg": (_truncated_jpeg(), "truncated"),
    "cut.png": (_cut_png(), "truncated"),
    "empty.png": (b"", "an empty file"),
    "page.jpg": (b"<!doctype html><title>404</title>", "no picture, or of a kind that is not known"),
    "flipped.png": (_flipped_png(), "damaged: "),
    "speck.png": (_speck(), "1x1 px, expected at least 8 px"),
    "phone.heic": (b"anything", ".heic cannot be read: convert it"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures_are_named_and_refused_or_left_out(tmp_path: Path, name: str) -> None:
    content, reason = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / name).with_suffix(".txt").write_text("a cat")
    picture(tmp_path / "whole.png", caption="a dog")
    refused = surveyed(tmp_path)
    with pytest.raises(DataError, match=f"{name}: .*{reason}"):
        refused.require()
    skipped = surveyed(tmp_path, skip_broken=True)
    skipped.require()
    assert [p.source.path.name for p in skipped.pictures] == ["whole.png"]
    assert name in line(skipped, "broken")


def test_nothing_left_is_refused_even_if_broken_ones_may_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "a.txt").write_text("a cat")
    assert codes(surveyed(tmp_path, skip_broken=True), "error") == {"nothing_to_train_on"}


def test_a_picture_with_the_ending_of_another_kind_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="a cat").rename(tmp_path / "a.jpg")
    assert not surveyed(tmp_path).errors
