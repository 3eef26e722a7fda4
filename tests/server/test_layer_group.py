"""Numbers in layers that share them: whoever touches a layer, a table may name anybody's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loramux_server.engine.blends import EVERYWHERE, Added
from loramux_server.engine.lora_layers import wrap
from loramux_server.engine.module_factors import ModuleFactors

CPU = torch.device("cpu")


def test_scale_rows_of_adapters_that_touch_other_layers() -> None:
    """Layer one has a scale of number 1 alone, layer two of 20: a row that uses both finds both in either layer."""
    torch.manual_seed(0)
    layers = nn.ModuleDict({"one": nn.Linear(6, 5), "two": nn.Linear(6, 5)})
    bases = {name: layer.weight.data.clone() for name, layer in layers.items()}
    biases = {name: layer.bias.data.clone() for name, layer in layers.items()}
    group = wrap({"unet": layers})["unet.rest"]
    group.open(32, CPU)
    magnitudes = {"one": torch.rand(5), "two": torch.rand(5)}

    def write(name: str, number: int) -> None:
        factors = ModuleFactors({"a": torch.zeros(1, 6), "b": torch.zeros(1, 5), "m": magnitudes[name]}, 1.0, "output")
        owned = {"unet.rest": (number,), "unet.rest output scales": (number,)}
        group.write(owned, {f"unet.{name}": factors})

    def wanted(name: str, x: Tensor, weight: float) -> Tensor:
        scale = 1 + weight * (magnitudes[name] / bases[name].norm(dim=1) - 1)
        return F.linear(x, bases[name] * scale[:, None], biases[name])

    write("two", 20)
    write("one", 1)
    x = torch.randn(2, 3, 6)
    both = Added(rows=((1, 0.7), (20, 0.4)), outputs=((1, 0.7), (20, 0.4)))
    for _ in range(2):
        with torch.inference_mode(), group.adding([{EVERYWHERE: both}] * 2):
            got = {name: layer(x) for name, layer in layers.items()}
        for name, weight in (("one", 0.7), ("two", 0.4)):
            assert torch.allclose(got[name], wanted(name, x, weight), atol=1e-6), name
            assert not torch.allclose(got[name], F.linear(x, bases[name], biases[name]), atol=1e-2)
        write("two", 20)  # after what is there has grown
