"""Arithmetic on tensors: a layer and the rank rows that each batch row adds to it.

Takes activations, base weights, pools of rank rows and index tables; gives activations. It knows no
adapter, no request and no model. Importable without triton and without a GPU.
"""

from loramux_kernels.ops import Impl, check_impl, default_impl, lora_conv2d, lora_linear, lora_qkv
from loramux_kernels.pool import FusedPool, PoolFull, RankRowPool, RowAllocator
from loramux_kernels.self_test import self_test
from loramux_kernels.tables import MAX_ROW_RANK, R_CLASSES, Entries, TableBank, Tables, class_of

__all__ = [
    "MAX_ROW_RANK",
    "R_CLASSES",
    "Entries",
    "FusedPool",
    "Impl",
    "PoolFull",
    "RankRowPool",
    "RowAllocator",
    "TableBank",
    "Tables",
    "check_impl",
    "class_of",
    "default_impl",
    "lora_conv2d",
    "lora_linear",
    "lora_qkv",
    "self_test",
]
