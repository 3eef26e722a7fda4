"""The module tables of Stable Diffusion 1, 2, XL and the built-in base, generated from their architecture.

Takes the name of an architecture; gives {module path: weight shape} of every Linear and Conv2d of
its UNet and text encoders, in diffusers' names. Knows no diffusers and no torch: the tests
compare it with the real models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = [
    "TextEncoderConfig",
    "UNetConfig",
    "modules",
    "text_encoder_modules",
    "unet_modules",
]

Rows = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class UNetConfig:
    """A UNet; depths: transformer blocks in each down block, 0 = no attention there."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    mid_depth: int
    context: int
    linear_projection: bool
    added: int = 0  # input width of add_embedding, 0 = none
    resnets: int = 2


@dataclass(frozen=True, slots=True)
class TextEncoderConfig:
    """A CLIP text encoder; projection: width of its text_projection, 0 = none."""

    width: int
    inner: int
    layers: int
    projection: int = 0


_CLIP_L = TextEncoderConfig(768, 3072, 12)
_UNETS = {
    "sd1": UNetConfig((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 768, False),
    "sd2": UNetConfig((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 1024, True),
    "sdxl": UNetConfig((320, 640, 1280), (0, 2, 10), 10, 2048, True, added=2816),
    "builtin": UNetConfig((48, 96, 128), (1, 1, 0), 1, 128, False, resnets=1),
}
_TEXT_ENCODERS = {
    "sd1": {"text_encoder": _CLIP_L},
    # diffusers ships OpenCLIP-H with its penultimate layer last: 23, not 24.
    "sd2": {"text_encoder": TextEncoderConfig(1024, 4096, 23)},
    "sdxl": {
        "text_encoder": _CLIP_L,
        "text_encoder_2": TextEncoderConfig(1280, 5120, 32, projection=1280),
    },
    "builtin": {"text_encoder": TextEncoderConfig(128, 512, 2)},
}


def modules(name: str) -> dict[str, tuple[int, ...]]:
    """{path: weight shape} of an architecture."""
    table = {f"unet.{path}": shape for path, shape in unet_modules(_UNETS[name])}
    for component, encoder in _TEXT_ENCODERS[name].items():
        table.update({f"{component}.{path}": shape for path, shape in text_encoder_modules(encoder)})
    return table


def text_encoder_modules(config: TextEncoderConfig) -> Rows:
    """(path, weight shape) of a text encoder's modules."""
    square = (config.width, config.width)
    for layer in range(config.layers):
        stem = f"text_model.encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{stem}.self_attn.{name}", square
        yield f"{stem}.mlp.fc1", (config.inner, config.width)
        yield f"{stem}.mlp.fc2", (config.width, config.inner)
    if config.projection:
        yield "text_projection", (config.projection, config.width)


def unet_modules(config: UNetConfig) -> Rows:
    """(path, weight shape) of a UNet's modules."""
    first = config.widths[0]
    time = 4 * first
    yield "conv_in", (first, 4, 3, 3)
    yield "conv_out", (4, first, 3, 3)
    yield "time_embedding.linear_1", (time, first)
    yield "time_embedding.linear_2", (time, time)
    if config.added:
        yield "add_embedding.linear_1", (time, config.added)
        yield "add_embedding.linear_2", (time, time)
    yield from _down(config, time)
    yield from _mid(config, time)
    yield from _up(config, time)


def _down(config: UNetConfig, time: int) -> Rows:
    width_in = config.widths[0]
    last = len(config.widths) - 1
    for i, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        for j in range(config.resnets):
            source = width_in if j == 0 else width
            yield from _resnet(f"down_blocks.{i}.resnets.{j}", source, width, time)
            yield from _attention(f"down_blocks.{i}.attentions.{j}", config, width, depth)
        if i < last:
            yield f"down_blocks.{i}.downsamplers.0.conv", (width, width, 3, 3)
        width_in = width


def _mid(config: UNetConfig, time: int) -> Rows:
    width = config.widths[-1]
    for j in range(2):
        yield from _resnet(f"mid_block.resnets.{j}", width, width, time)
    yield from _attention("mid_block.attentions.0", config, width, config.mid_depth)


def _up(config: UNetConfig, time: int) -> Rows:
    widths = config.widths[::-1]
    last = len(widths) - 1
    below = widths[0]
    for i, (width, depth) in enumerate(zip(widths, config.depths[::-1], strict=True)):
        # each resnet also takes a skip: those of this level, and last the one from the level above
        above = widths[min(i + 1, last)]
        for j in range(config.resnets + 1):
            source = below if j == 0 else width
            skip = above if j == config.resnets else width
            yield from _resnet(f"up_blocks.{i}.resnets.{j}", source + skip, width, time)
            yield from _attention(f"up_blocks.{i}.attentions.{j}", config, width, depth)
        if i < last:
            yield f"up_blocks.{i}.upsamplers.0.conv", (width, width, 3, 3)
        below = width


def _resnet(stem: str, width_in: int, width: int, time: int) -> Rows:
    yield f"{stem}.conv1", (width, width_in, 3, 3)
    yield f"{stem}.time_emb_proj", (width, time)
    yield f"{stem}.conv2", (width, width, 3, 3)
    if width_in != width:
        yield f"{stem}.conv_shortcut", (width, width_in, 1, 1)


def _attention(stem: str, config: UNetConfig, width: int, depth: int) -> Rows:
    if not depth:
        return
    projection = (width, width) if config.linear_projection else (width, width, 1, 1)
    yield f"{stem}.proj_in", projection
    yield f"{stem}.proj_out", projection
    for k in range(depth):
        block = f"{stem}.transformer_blocks.{k}"
        for name, source in (("attn1", width), ("attn2", config.context)):
            yield f"{block}.{name}.to_q", (width, width)
            yield f"{block}.{name}.to_k", (width, source)
            yield f"{block}.{name}.to_v", (width, source)
            yield f"{block}.{name}.to_out.0", (width, width)
        yield f"{block}.ff.net.0.proj", (8 * width, width)
        yield f"{block}.ff.net.2", (width, 4 * width)
