"""Gradients of A and B are those of finite differences; the base is never touched."""

from typing import Any

import pytest
import tiny_training as tiny
import torch
from accelerate import Accelerator
from torch import nn

from loramux_train import plan
from loramux_train.adapter_settings import AdapterSettings
from loramux_train.injection import inject
from loramux_train.noise import Noise
from loramux_train.optimiser_settings import OptimiserSettings
from loramux_train.recipe import Recipe
from loramux_train.run_settings import RunSettings
from loramux_train.target_settings import TargetSettings
from loramux_train.training import Training


class _Little(nn.Module):
    """A module with the names of a UNet's: a linear layer and a strided 3x3 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.mid_block = nn.Module()
        self.mid_block.attentions = nn.ModuleList([nn.Module()])
        attention = self.mid_block.attentions[0]
        attention.attn1 = nn.Module()
        attention.attn1.to_q = nn.Linear(5, 4)
        self.mid_block.resnets = nn.ModuleList([nn.Module()])
        self.mid_block.resnets[0].conv1 = nn.Conv2d(3, 5, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 3, 6, 6] to [n, 9, 4]."""
        inner: Any = self.mid_block
        rows = inner.resnets[0].conv1(x).flatten(2).transpose(1, 2)
        return inner.attentions[0].attn1.to_q(rows)


@pytest.mark.parametrize("rslora", [False, True])
def test_autograd_of_factors_is_that_of_finite_differences(rslora: bool) -> None:
    torch.manual_seed(0)
    model = _Little()
    settings = AdapterSettings(rank=2, alpha=3.0, rslora=rslora)
    planned = plan.make({"unet": model}, TargetSettings(modules="locon"), settings, "adamw", 4)
    assert {layer.group for layer in planned.layers} == {"self_attention", "convolution"}
    injected = inject({"unet": model}, planned, settings, seed=1)
    model.double()
    parameters = [injected.parameters[name] for name in injected.parameters]
    assert len(parameters) == 4
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)

    def loss(*_: torch.Tensor) -> torch.Tensor:
        return model(x).square().mean()

    assert torch.autograd.gradcheck(loss, parameters, atol=1e-8, rtol=1e-6)
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    assert len(frozen) == 4


@pytest.mark.parametrize("dora", [False, True])
def test_the_base_is_bit_identical_after_training(dora: bool) -> None:
    base = tiny.base()
    before = {
        part: {name: tensor.clone() for name, tensor in module.state_dict().items()}
        for part, module in base.parts().items()
    }
    recipe = Recipe(
        adapter=AdapterSettings(dora=dora, dropout=0.1),
        optimiser=OptimiserSettings(rate=1e-2, text_encoder_rate=1e-2),
        run=RunSettings(steps=3),
    )
    targets = TargetSettings(modules="locon", text_encoder=True)
    injected = inject(base.parts(), plan.make(base.parts(), targets, recipe.adapter, "adamw", 4), recipe.adapter, 0)
    start = {name: value.detach().clone() for name, value in injected.parameters.items()}
    noise = Noise.of(base.outline.scheduler)
    training = Training(base, injected, noise, tiny.MadeBatches(), recipe, Accelerator(cpu=True))
    for _ in range(3):
        training.step()
    assert all(not torch.equal(value, start[name]) for name, value in injected.parameters.items())
    for part, module in base.parts().items():
        after = {name.replace(".base_layer.", "."): tensor for name, tensor in module.state_dict().items()}
        assert len(before[part]) > 20
        assert all(torch.equal(after[name], tensor) for name, tensor in before[part].items())
        assert {n for n in after if "lora_" not in n} == before[part].keys()
