"""Reading pictures as people have them: turned, transparent, in other colours, too large, broken.

Takes a file; gives 8-bit sRGB on a plain ground, and the opacity, or Unreadable with the reason. Memory is bounded by
MOST_PIXELS. Knows no captions and no buckets.
"""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from loramux_train.errors import TrainError

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
UNREAD_ENDINGS = frozenset({".heic", ".heif", ".jxl", ".psd", ".svg", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".exr"})

MOST_PIXELS = 1 << 27  # of a decoded picture: half a gigabyte at 4 bytes, twice that while it is converted
FEWEST_PIXELS_OF_EDGE = 8  # less is a speck, whatever it is enlarged to

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # none that runs programs, as EPS does
_DRAFTED = ("JPEG", "MPO")  # formats that can be decoded at a half, a quarter or an eighth of their size
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SRGB = ImageCms.createProfile("sRGB")


class Unreadable(TrainError):
    """A file no picture can be had from; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Looks:
    """What a file says of itself: size in pixels as it is shown, and what of it will not be used."""

    width: int
    height: int
    frames: int


@dataclass(frozen=True, slots=True)
class Shown:
    """A decoded picture: RGB, its opacity (L) where it has any, and the file's own width and height, upright."""

    rgb: Image.Image
    opacity: Image.Image | None
    full_size: tuple[int, int]


@contextmanager
def decoding() -> Generator[None]:
    """While this lasts Pillow decides nothing about sizes, since `read` does, and prints no warnings.

    Both are settings of the whole process: enter it once, around all threads that read.
    """
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def look(path: Path) -> Looks:
    """Size and frames of a file, all of it decoded once, so that what is cut off is found.

    A JPEG is decoded at an eighth of its size, which reads every byte and takes little memory.
    """
    with _opened(path) as image:
        width, height = _size_as_shown(image)
        if min(width, height) < FEWEST_PIXELS_OF_EDGE:
            raise Unreadable(f"{width}x{height} px, expected at least {FEWEST_PIXELS_OF_EDGE} px on each side")
        frames = _frames(image)
        _load(image, (1, 1))
    return Looks(width, height, frames)


def read(path: Path, ground: tuple[int, int, int], at_least: tuple[int, int] = (1 << 30, 1 << 30)) -> Shown:
    """The picture as it is to be seen: upright, in sRGB, on the ground.

    at_least: width and height that are wanted of it; a JPEG may come smaller than it is, never smaller than twice that.
    """
    with _opened(path) as image:
        full, orientation = _size_as_shown(image), _orientation(image)
        wanted = (at_least[0] * 2, at_least[1] * 2)
        _load(image, wanted[::-1] if orientation > 4 else wanted)
        try:
            upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
            opacity = _opacity(upright)
            rgb = _rgb(upright)
        except (ValueError, OSError, TypeError) as fault:
            raise Unreadable(f"colours of mode {image.mode} cannot be read: {fault}") from None
    if opacity is None:
        return Shown(rgb, None, full)
    on_ground = Image.new("RGB", rgb.size, ground)
    on_ground.paste(rgb, mask=opacity)
    return Shown(on_ground, opacity, full)


@contextmanager
def _opened(path: Path) -> Generator[Image.Image]:
    if (ending := path.suffix.lower()) in UNREAD_ENDINGS:
        raise Unreadable(f"{ending} cannot be read: convert it to PNG or JPEG")
    with decoding():
        try:
            image = Image.open(path, formats=_FORMATS)
        except Image.UnidentifiedImageError:
            kind = "an empty file" if path.stat().st_size == 0 else "no picture, or of a kind that is not known"
            raise Unreadable(kind) from None
        except Exception as fault:  # a decoder that meets a damaged header raises anything
            raise Unreadable(_reason(fault)) from None
        with image:
            if image.format not in _DRAFTED:
                _refuse_too_large(image)  # before anything else: asking a PNG for its EXIF decodes it
            yield image


def _load(image: Image.Image, wanted: tuple[int, int]) -> None:
    """Decode, a JPEG in the smallest of its sizes that is not below the one wanted."""
    width, height = image.size
    if image.format in _DRAFTED:
        image.draft(None, (min(wanted[0], width), min(wanted[1], height)))
        _refuse_too_large(image)
    try:
        image.load()
    except Exception as fault:  # as above
        raise Unreadable(_reason(fault)) from None


def _refuse_too_large(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise Unreadable(
            f"{image.width}x{image.height} px, {image.width * image.height / 1e6:.0f} million pixels, more than the "
            f"{MOST_PIXELS / 1e6:.0f} million that are decoded: make it smaller"
        )


def _frames(image: Image.Image) -> int:
    """Frames of an animation, pages of a document; what a phone adds to its JPEG is neither."""
    try:
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Exception as fault:  # as above: it looks for the next frame until there is none
        raise Unreadable(_reason(fault)) from None


def _reason(fault: Exception) -> str:
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror
    text = " ".join(str(fault).split()) or type(fault).__name__
    return f"damaged: {text}"


def _size_as_shown(image: Image.Image) -> tuple[int, int]:
    return (image.height, image.width) if _orientation(image) > 4 else (image.width, image.height)


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; 5 to 8 swap width and height. Asking a PNG for it decodes it."""
    try:
        found = image.getexif().get(_ORIENTATION)
    except Exception as fault:  # as above
        raise Unreadable(_reason(fault)) from None
    return found if found in _UPRIGHT else 1


def _opacity(image: Image.Image) -> Image.Image | None:
    if not image.has_transparency_data or _of_wide_numbers(image):
        return None
    return image.convert("RGBA").getchannel("A")


def _rgb(image: Image.Image) -> Image.Image:
    if _of_wide_numbers(image):
        return _from_numbers(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
    if profile := image.info.get("icc_profile"):
        plain = image.convert("RGB") if image.mode not in ("RGB", "L", "CMYK", "LAB") else image
        try:
            return _in_srgb(plain, profile)
        except (ImageCms.PyCMSError, OSError):  # a profile of other colours than the picture has, or a damaged one
            return plain.convert("RGB")
    return image.convert("RGB")


def _of_wide_numbers(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    if image.mode == "RGB" and "sRGB" in ImageCms.getProfileDescription(source):
        return image
    found = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
    assert found is not None  # None only where it is told to work in place
    return found


def _from_numbers(image: Image.Image) -> Image.Image:
    """16 bits a pixel to 8, the way that keeps white white; Pillow's own conversion cuts what is above 255."""
    numbers = np.asarray(image)
    lowest, highest = float(numbers.min()), float(numbers.max())
    if image.mode == "F":
        if lowest < 0 or highest > 1:
            raise ValueError(f"floating point values from {lowest:g} to {highest:g}, expected 0 to 1")
        return Image.fromarray(np.rint(numbers * 255).astype(np.uint8))
    if lowest < 0 or highest > 65535:
        raise ValueError(f"values from {lowest:g} to {highest:g}, expected 0 to 65535")
    return Image.fromarray(np.rint(numbers / 257.0).astype(np.uint8))
