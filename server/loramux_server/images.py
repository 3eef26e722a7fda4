"""Images that requests bring: from files to pixels in the size of the picture.

Takes a request's image and mask as they were sent; gives them decoded, then as a `Source`, or what is wrong with
them. Decoding takes time, so it does not belong on the event loop. It knows no protobuf, no tensors and no base.
"""

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageFilter, UnidentifiedImageError

from loramux_server.errors import InvalidRequest, Violation
from loramux_server.requests import GenerationRequest, Source

MAX_BYTES = 16 << 20
MAX_PIXELS = 1 << 25  # what cameras make, at 100 MB decoded
MAX_BLUR = 64.0  # the most that web interfaces offer

_FORMATS = ("PNG", "JPEG", "WEBP")
_BACKGROUNDS = {"image": "white", "mask": "black"}
_MODES = {"image": "RGB", "mask": "L"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by Exif's orientation (Exif 2.32, section 4.6.4)."""


@dataclass(frozen=True, slots=True)
class Brought:
    """A request's image (RGB) and mask (grey), upright and opaque, in their own sizes; violations name what is bad."""

    image: Image.Image | None = None
    mask: Image.Image | None = None
    violations: tuple[Violation, ...] = ()


def decode(request: GenerationRequest) -> Brought:
    """The image and the mask of a request."""
    found: list[Violation] = []
    images: dict[str, Image.Image] = {}
    for field, data in (("image", request.image), ("mask", request.mask)):
        if data is None:
            continue
        try:
            images[field] = _decoded(field, data)
        except InvalidRequest as refused:
            found += refused.violations
    return Brought(images.get("image"), images.get("mask"), tuple(found))


def source(request: GenerationRequest, brought: Brought, width: int, height: int) -> Source | None:
    """What the request's pictures are drawn over; None where they start from noise.

    Blur, resizing and the cut at half white are those of diffusers' VaeImageProcessor, in its order.
    """
    if brought.image is None:
        return None
    assert request.image is not None
    image = _resized(brought.image, width, height).tobytes()
    if brought.mask is None or request.mask is None:
        return Source(image, _digest(request.image))
    blur = request.mask_blur or 0.0
    mask = brought.mask.filter(ImageFilter.GaussianBlur(blur)) if blur else brought.mask
    redrawn = np.asarray(_resized(mask, width, height)) >= 128  # of 255: at least half
    return Source(image, _digest(request.image), redrawn.astype(np.uint8).tobytes(), _digest(request.mask), blur)


def _decoded(field: str, data: bytes) -> Image.Image:
    """The picture in a file; its size is checked by its header before any pixel is decoded."""
    if len(data) > MAX_BYTES:
        raise _refused(field, f"has {len(data)} bytes, expected at most {MAX_BYTES}")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise _refused(field, f"is {width}x{height}, expected at most {MAX_PIXELS} pixels")
            return _flat(field, _upright(opened))
    except InvalidRequest:
        raise
    except UnidentifiedImageError:
        raise _refused(field, f"is {len(data)} bytes that are no PNG, JPEG or WebP") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _refused(field, f"is too large to decode, expected at most {MAX_PIXELS} pixels") from None
    except Exception as error:  # decoders of damaged files raise many kinds
        raise _refused(field, f"is {len(data)} bytes of a damaged file: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _flat(field: str, image: Image.Image) -> Image.Image:
    """8 bits a channel, nothing transparent."""
    if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would clip
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _BACKGROUNDS[field]), image)
    return image.convert(_MODES[field])


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _refused(field: str, description: str) -> InvalidRequest:
    return InvalidRequest((Violation(field, description),))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
