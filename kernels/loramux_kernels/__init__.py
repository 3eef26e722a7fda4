"""Arithmetic on tensors: a layer and the rank rows that each batch row adds to it.

Takes activations, base weights, pools of rank rows and index tables; gives activations. It knows no
adapter, no request and no model. Importable without triton and without a GPU.
"""

from loramux_kernels.ops import Impl, check_impl, default_impl, lora_conv2d, lora_linear, lora_qkv
from loramux_kernels.pool import SCALE_ROWS, FusedPool, PoolFull, RankRowPool, RowAllocator
from loramux_kernels.self_test import self_test
from loramux_kernels.side import (
    Dense,
    Hadamard,
    Kronecker,
    NormDelta,
    SideOperation,
    Use,
    add_conv2d,
    add_linear,
    add_norm,
    uses,
)
from loramux_kernels.tables import G_CLASSES, MAX_ROW_RANK, R_CLASSES, Entries, TableBank, Tables, class_of

__all__ = [
    "G_CLASSES",
    "MAX_ROW_RANK",
    "R_CLASSES",
    "SCALE_ROWS",
    "Dense",
    "Entries",
    "FusedPool",
    "Hadamard",
    "Impl",
    "Kronecker",
    "NormDelta",
    "PoolFull",
    "RankRowPool",
    "RowAllocator",
    "SideOperation",
    "TableBank",
    "Tables",
    "Use",
    "add_conv2d",
    "add_linear",
    "add_norm",
    "check_impl",
    "class_of",
    "default_impl",
    "lora_conv2d",
    "lora_linear",
    "lora_qkv",
    "self_test",
    "uses",
]
