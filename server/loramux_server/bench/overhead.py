"""What adapters cost where none acts, and what the host does for those that do.

A batch without adapters: the bits and operations of the base as loaded, and nearly its time. A blend of resident
adapters: its first tick is as quick among a thousand residents as among ten, and another weight is next to nothing. A
call: what wire and queue add to its picture.
"""

import torch
from diffusers import UNet2DConditionModel

from loramux_server.app import BUILTIN_FOLDER
from loramux_server.bench import activation, call
from loramux_server.bench.harness import Row, processor, ratio
from loramux_server.bench.operations import operations
from loramux_server.engine.load_base import load_base
from loramux_server.engine.lora_layers import wrap

_REPEATS = 15


def measure() -> list[Row]:
    """The wrapped UNet without tables over the same UNet as loaded, the host's work, and a call's."""
    return [*_wrapped(), *activation.measure(), *call.measure()]


@torch.inference_mode()
def _wrapped() -> list[Row]:
    folder, cpu = BUILTIN_FOLDER / "base", torch.device("cpu")
    plain, wrapped = load_base(folder, "plain", cpu).unet, load_base(folder, "wrapped", cpu).unet
    for group in wrap({"unet": wrapped}).values():
        group.open(2, cpu)
        group.write({group.name: (1,)}, {})
    side, width = plain.config["sample_size"], plain.config["cross_attention_dim"]
    latents, text = torch.randn(8, 4, side, side), torch.randn(8, 77, width)

    def forward(unet: UNet2DConditionModel) -> torch.Tensor:
        return unet(latents, 500, text).sample

    assert torch.equal(forward(plain), forward(wrapped)), "wrapping changed bits"
    ours, theirs = operations(lambda: forward(wrapped)), operations(lambda: forward(plain))
    assert theirs.total() > 100, "the operations were not seen"
    value = ratio(lambda: forward(wrapped), lambda: forward(plain), _REPEATS, processor)
    what = "forward of 8 rows without adapters"
    return [
        Row(f"{what}, processor time, wrapped / as loaded", value, "x", "<=1.03"),
        Row(f"{what}, operations that the base as loaded has not", (ours - theirs).total(), "operations", "<=0"),
    ]
