"""Pictures as text, for files that need nothing else.

Takes a picture; gives a data URI. Small ones stay exact, larger ones become JPEG.
"""

import base64
import io

from PIL import Image

__all__ = ["data_uri"]

_SMALL = 128  # pixels


def data_uri(image: Image.Image, largest: int | None) -> str:
    """largest: pixels of the longer edge of what is shown, None for as many as there are. modelspec advises 256 for a
    thumbnail."""
    shown = image.convert("RGB")
    if largest is not None:
        shown.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    kind = "PNG" if max(shown.size) <= _SMALL else "JPEG"
    file = io.BytesIO()
    shown.save(file, kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
