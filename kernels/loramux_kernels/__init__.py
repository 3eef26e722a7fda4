"""Arithmetic on tensors: a layer and the rank rows that each batch row adds to it.

Takes activations, base weights, pools of rank rows and index tables; gives activations. It knows no
adapter, no request and no model. Importable without triton and without a GPU.
"""

from loramux_kernels.ops import lora_conv2d, lora_linear
from loramux_kernels.pool import (
    MAX_ROW_RANK,
    R_CLASSES,
    PoolFull,
    RankRowPool,
    RowAllocator,
    TableBank,
    Tables,
    rank_class,
)

__all__ = [
    "MAX_ROW_RANK",
    "R_CLASSES",
    "PoolFull",
    "RankRowPool",
    "RowAllocator",
    "TableBank",
    "Tables",
    "lora_conv2d",
    "lora_linear",
    "rank_class",
]
