"""From latents to an encoded picture, off the tick's thread.

Takes latents, the base's VAE, a format and the text to write into the file; gives its bytes. It knows no request.
"""

import io
from typing import Any

import torch
from diffusers import AutoencoderKL
from PIL import ExifTags, Image, PngImagePlugin
from safetensors.torch import save
from torch import Tensor

from loramux_server.errors import PictureFailed
from loramux_server.requests import ImageFormat, Output

TILED_ABOVE = 1536 * 1536
"""Pixels above which a picture is decoded in overlapping tiles, so that memory stays bounded: in fp32 the widest layers
of Stable Diffusion's VAE take 1 KiB a pixel each. All bases draw their own size (1024 x 1024 at most) in one piece."""


@torch.inference_mode()
def decode(vae: AutoencoderKL, latents: Tensor) -> Image.Image:
    """One picture of latents [1, C, h, w], as diffusers' image processor makes it: to [0, 1], then rounded.

    Raises:
        PictureFailed: where the VAE gave something that is no picture; as bytes it would be black.
    """
    decoder: Any = vae.tiled_decode if _large(vae, latents) else vae.decode
    pixels = decoder(_unscaled(vae, latents.to(vae.dtype)), return_dict=False)[0]
    if not torch.isfinite(pixels).all():
        raise PictureFailed("the picture became non-finite when it was decoded")
    pixels = (pixels / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).float().cpu().numpy()
    return Image.fromarray((pixels * 255).round().astype("uint8"))


def _large(vae: AutoencoderKL, latents: Tensor) -> bool:
    scale = 2 ** (len(vae.config["block_out_channels"]) - 1)
    return latents.shape[2] * latents.shape[3] * scale**2 > TILED_ABOVE


def _unscaled(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """From the UNet's scale to the VAE's, as diffusers' pipelines do it."""
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or std is None:
        return latents / vae.config["scaling_factor"]
    by_channel = [latents.new_tensor(values).view(1, -1, 1, 1) for values in (std, mean)]
    return latents * by_channel[0] / vae.config["scaling_factor"] + by_channel[1]


def encode(picture: Image.Image, output: Output, parameters: str) -> bytes:
    """The picture as a PNG, JPEG or WebP file, 8 bits a channel; parameters is left out where it is empty.

    They lie where people's tools look for them: in PNG as the text `parameters`, otherwise in Exif's UserComment.
    """
    file = io.BytesIO()
    if output.format == ImageFormat.PNG:
        picture.save(file, format="PNG", pnginfo=_png_text(parameters))
    else:
        picture.save(file, format=output.format.name, quality=output.quality, exif=_exif(parameters))
    return file.getvalue()


def raw(latents: Tensor, parameters: str) -> bytes:
    """Latents [1, C, h, w] as a safetensors file with the one tensor `latents` fp32 [C, h, w]."""
    return save({"latents": latents[0].float().cpu().contiguous()}, {"parameters": parameters} if parameters else None)


def _png_text(parameters: str) -> PngImagePlugin.PngInfo | None:
    if not parameters:
        return None
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", parameters)
    return info


def _exif(parameters: str) -> bytes:
    """Exif with the text as its UserComment, in UTF-16 (Exif 2.32, section 4.6.5)."""
    exif = Image.Exif()
    if parameters:
        comment = b"UNICODE\0" + parameters.encode("utf-16-be")
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return exif.tobytes() if parameters else b""
