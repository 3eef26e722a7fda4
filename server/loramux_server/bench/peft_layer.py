"""PEFT's module for a layer with a blend: its adapters one after another, none merged.

Takes a layer and a blend; gives a callable. PEFT is imported when the module is asked for. It knows no pool but
that of the layer it copies.
"""

from typing import Any

import torch
from torch import nn

from loramux_kernels import RankRowPool
from loramux_server.bench.layer import Blend, Compute, Layer


def peft_module(layer: Layer, blend: Blend) -> Compute:
    """`peft.tuners.lora.Linear` over the layer's own weight, with copies of the blend's rank rows."""
    import peft

    pool = layer.pool
    assert isinstance(pool, RankRowPool)
    base = nn.Linear(layer.w0.shape[1], layer.w0.shape[0], bias=False, device="meta")
    base.weight = nn.Parameter(layer.w0, requires_grad=False)
    names = [f"adapter{i}" for i in range(len(blend.adapters))]
    configs = [peft.LoraConfig(r=len(one.rows), target_modules=["layer"]) for one in blend.adapters]
    model = peft.PeftModel(nn.ModuleDict({"layer": base}), configs[0], adapter_name=names[0])
    for name, config in zip(names[1:], configs[1:], strict=True):
        model.add_adapter(name, config)
    tuner: Any = model.base_model
    tuner.set_adapter(names)
    module = tuner.model["layer"]
    for name, one in zip(names, blend.adapters, strict=True):
        rows = list(one.rows)
        module.lora_A[name].weight.data = pool.a[rows].clone()
        module.lora_B[name].weight.data = pool.b[rows].mT.contiguous()
        module.scaling[name] = one.weight
    module.requires_grad_(False)
    assert isinstance(module, peft.tuners.lora.Linear) and module.active_adapters == names
    return torch.inference_mode()(lambda: module(layer.x))
