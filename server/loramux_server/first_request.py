"""What a server draws before anybody asks.

Takes the base; gives a request. It knows no engine.
"""

import io

from PIL import Image

from loramux_server.engine.pipeline import Base
from loramux_server.requests import GenerationRequest


def first_request(base: Base) -> GenerationRequest:
    """The smallest picture of the base, in one step; with an image and a mask where it draws from nothing else."""
    side = base.min_side
    brought = _grey(side) if base.inpainting else None
    return GenerationRequest(prompt="a picture", steps=1, seed=0, width=side, height=side, image=brought, mask=brought)


def _grey(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side), 128).save(file, format="PNG")
    return file.getvalue()
