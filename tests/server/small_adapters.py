"""Small adapters of the built-in base that draw pictures of their own."""

import torch
from safetensors.torch import save

KINDS = 4
WIDTH = 48  # of the layer
LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def small_adapter(kind: int, note: str, pad: int = 0) -> bytes:
    """A PEFT file. Files of one kind draw the same, and differ in their notes, so in their digests; pad: bytes more,
    that draw nothing."""
    dice = torch.Generator().manual_seed(kind)
    tensors = {
        f"{LAYER}.lora_A.weight": torch.randn(4, WIDTH, generator=dice),
        f"{LAYER}.lora_B.weight": torch.randn(WIDTH, 4, generator=dice),
    }
    return save(tensors, {"note": note, "pad": "x" * pad})
