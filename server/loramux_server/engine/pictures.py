"""From latents to an encoded picture, off the tick's thread.

Takes latents, the base's VAE, a format and the text to write into the file; gives its bytes. It knows no request.
"""

import io

import torch
from diffusers import AutoencoderKL
from PIL import ExifTags, Image, PngImagePlugin
from safetensors.torch import save
from torch import Tensor

from loramux_server.requests import ImageFormat, Output


@torch.inference_mode()
def decode(vae: AutoencoderKL, latents: Tensor) -> Image.Image:
    """One picture of latents [1, C, h, w], as diffusers' image processor makes it: to [0, 1], then rounded."""
    pixels = vae.decode(latents.to(vae.dtype) / vae.config["scaling_factor"], return_dict=False)[0]
    pixels = (pixels / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).float().cpu().numpy()
    return Image.fromarray((pixels * 255).round().astype("uint8"))


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
