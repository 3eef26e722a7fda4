"""How much room a version takes on the device.

Takes what a file's modules hold and a layout; gives bytes. An adapter owns as many rank rows of a layer group as its
largest rank there, in every layer of the group, for the layers share row numbers. Knows no device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import prod

from loramux_store.layout import Layout, ModuleSpec
from loramux_store.record import Embedding, MatchedModule

__all__ = ["device_bytes", "layer_group", "vector_bytes"]

_NUMBER = 2  # bytes of a 16-bit number
_SCALE_NUMBER = 4  # of weight decomposition: fp32 everywhere
_VECTOR_NUMBER = 4  # of an embedding: fp32 everywhere


def device_bytes(modules: Iterable[MatchedModule], layout: Layout) -> int:
    """Of a version's rank rows and side operations in numbers of 16 bits, and of its scale rows in fp32."""
    ranks, values, scales = Counter[str](), 0, 0
    for module in modules:
        values += module.side_values
        if module.rank:
            group = layer_group(module.module, layout.modules[module.module])
            ranks[group] = max(ranks[group], module.rank)
        if module.axis:
            scales += layout.modules[module.module].shape[0 if module.axis == "output" else 1]
    widths = Counter[str]()
    for path, spec in layout.modules.items():
        widths[layer_group(path, spec)] += spec.shape[0] + prod(spec.shape[1:])
    return _NUMBER * (values + sum(rank * widths[group] for group, rank in ranks.items())) + _SCALE_NUMBER * scales


def vector_bytes(embeddings: Iterable[Embedding]) -> int:
    """Of textual inversions, on the device and in host memory."""
    return sum(_VECTOR_NUMBER * each.vectors * sum(each.widths.values()) for each in embeddings)


def layer_group(path: str, spec: ModuleSpec) -> str:
    """The layer group that a module belongs to: each text encoder; of the UNet attention, feed-forward, convolutions
    and the rest."""
    component, _, rest = path.partition(".")
    if component != "unet":
        return component
    if ".attn1." in rest or ".attn2." in rest:
        return "unet.attention"
    if ".ff." in rest or rest.endswith((".proj_in", ".proj_out")):
        return "unet.feed_forward"
    return "unet.convolution" if spec.kind == "conv2d" else "unet.rest"
