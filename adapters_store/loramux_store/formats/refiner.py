"""SDXL's refiner, which is not served: its layout, to name it where a file is for it.

Takes nothing; gives a Layout. Knows no files.
"""

from __future__ import annotations

from functools import cache

from loramux_store.architecture import UNetConfig, unet_modules
from loramux_store.layout import Layout, ModuleSpec, known_layout

__all__ = ["refiner"]

_UNET = UNetConfig((384, 768, 1536, 1536), (0, 4, 4, 0), 4, 1280, True, added=2560)


@cache
def refiner() -> Layout:
    """Its UNet, and the one text encoder that it shares with the base."""
    shapes = {f"unet.{path}": shape for path, shape in unet_modules(_UNET)}
    modules = {path: ModuleSpec("linear" if len(shape) == 2 else "conv2d", shape) for path, shape in shapes.items()}
    shared = known_layout("sdxl").modules
    modules |= {path: spec for path, spec in shared.items() if path.startswith("text_encoder_2.")}
    return Layout("sdxl_refiner", modules)
