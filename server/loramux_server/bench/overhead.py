"""What wrapping costs a batch without adapters: bits must be equal, time should be."""

import torch
from diffusers import UNet2DConditionModel

from loramux_server.app import BUILTIN_FOLDER
from loramux_server.bench.harness import Row, ratio
from loramux_server.engine.load_base import load_base
from loramux_server.engine.lora_layers import wrap


@torch.inference_mode()
def measure() -> list[Row]:
    """The wrapped UNet without tables over the same UNet as loaded."""
    folder, cpu = BUILTIN_FOLDER / "base", torch.device("cpu")
    plain, wrapped = load_base(folder, "plain", cpu).unet, load_base(folder, "wrapped", cpu).unet
    for group in wrap({"unet": wrapped}).values():
        group.open(2, cpu)
    side, width = plain.config["sample_size"], plain.config["cross_attention_dim"]
    latents, text = torch.randn(8, 4, side, side), torch.randn(8, 77, width)

    def forward(unet: UNet2DConditionModel) -> torch.Tensor:
        return unet(latents, 500, text).sample

    assert torch.equal(forward(plain), forward(wrapped)), "wrapping changed bits"
    value = ratio(lambda: forward(wrapped), lambda: forward(plain))
    return [Row("forward of 8 rows without adapters, wrapped / as loaded", value, "x", "<=1.05")]
