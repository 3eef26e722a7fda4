"""Factors in a frozen base: y = W0 x + scale B A x, with A gaussian and B zero at the start.

Takes models and a plan; puts PEFT's layers into the models, and gives the parameters that train, by name, and what they
have learnt, by module. Factors are fp32 whatever the base's type. Knows no optimiser and no file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import LoraConfig
from peft.tuners.lora import Conv2d, Linear
from torch import Tensor, nn

from loramux_train.adapter_settings import AdapterSettings
from loramux_train.output.trained import Part, TrainedModule
from loramux_train.plan import Plan, Planned

NAME = "default"

_NARROW = 8
"""Rank up to which a CPU is several times slower at the gradients of B and of the rank rows where the rows of these
matrices lie one after another: 78 and 63 us against 15, at rank 4, 1024 tokens, 96 channels. At rank 16 all take 35."""


@dataclass(frozen=True, slots=True)
class Injected:
    """The factors of a run. parameters: by part.path.A, .B and, with DoRA, .m, in the order of the plan; rslora:
    whether the scale is alpha / sqrt(rank)."""

    plan: Plan
    parameters: dict[str, nn.Parameter]
    rslora: bool

    def of(self, *, text: bool) -> list[nn.Parameter]:
        """Those of the text encoders, or of the UNet."""
        return [p for name, p in self.parameters.items() if name.startswith("text_encoder") == text]

    def modules(self, values: Mapping[str, Tensor] | None = None) -> list[TrainedModule]:
        """What has been learnt, or what the given values of all parameters would be."""
        held: Mapping[str, Tensor] = self.parameters if values is None else values
        return [
            TrainedModule(
                part=cast(Part, layer.part),
                path=layer.path,
                down=held[f"{layer.part}.{layer.path}.A"],
                up=held[f"{layer.part}.{layer.path}.B"],
                alpha=layer.alpha,
                rslora=self.rslora,
                magnitude=held.get(f"{layer.part}.{layer.path}.m"),
            )
            for layer in self.plan.layers
        ]


def inject(models: Mapping[str, nn.Module], plan: Plan, settings: AdapterSettings, seed: int) -> Injected:
    """Freeze the models and wrap the plan's layers.

    A ~ N(0, 1/rank), in PEFT's reading and diffusers': a standard deviation of 1/rank.
    """
    torch.manual_seed(seed)
    for model in models.values():
        model.requires_grad_(False)
    parameters: dict[str, nn.Parameter] = {}
    for layer in plan.layers:
        wrapped = _wrap(models[layer.part], layer, settings)
        name = f"{layer.part}.{layer.path}"
        parameters |= {f"{name}.A": wrapped.lora_A[NAME].weight, f"{name}.B": wrapped.lora_B[NAME].weight}
        if layer.dora:
            parameters[f"{name}.m"] = wrapped.lora_magnitude_vector[NAME].weight
    return Injected(plan, parameters, settings.rslora)


def learnt(parameters: Mapping[str, Tensor]) -> float:
    """max |B| over all layers: zero for an adapter that would change nothing."""
    return max(float(value.detach().abs().max()) for name, value in parameters.items() if name.endswith(".B"))


def _wrap(model: nn.Module, layer: Planned, settings: AdapterSettings) -> Any:
    config = LoraConfig(
        r=layer.rank,
        lora_alpha=layer.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        init_lora_weights="gaussian",
    )
    frozen: Any = model.get_submodule(layer.path)
    kind: Any = Conv2d if isinstance(frozen, nn.Conv2d) else Linear if settings.dora else _Linear
    wrapped: Any = kind(frozen, NAME, config, r=layer.rank, lora_alpha=layer.alpha)
    for held in (wrapped.lora_A, wrapped.lora_B, wrapped.lora_magnitude_vector):
        held.float().requires_grad_(True)
    _drop(wrapped, settings)
    parent, _, child = layer.path.rpartition(".")
    setattr(model.get_submodule(parent), child, wrapped)
    return wrapped


class _Linear(Linear):
    """PEFT's layer in fewer passes over its outputs: the scale multiplies the few rank rows, and the product with B is
    added while it is computed."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        frozen = self.base_layer(x)
        a, b = self.lora_A[NAME], self.lora_B[NAME].weight
        assert isinstance(b, Tensor)
        rows = (a(self.lora_dropout[NAME](x.to(b.dtype))) * self.scaling[NAME]).flatten(0, -2)
        if b.shape[1] <= _NARROW:
            rows, b = _by_column(rows), _by_column(b)
        return torch.addmm(frozen.flatten(0, -2), rows, b.T).view_as(frozen)


def _by_column(matrix: Tensor) -> Tensor:
    """The same numbers, those of a column next to each other in memory."""
    return matrix.T.contiguous().T


def _drop(wrapped: Any, settings: AdapterSettings) -> None:
    """Leaves out rank rows by picture, and layers by forward; PyTorch's own generator decides."""
    if settings.rank_dropout:
        wrapped.lora_A[NAME].register_forward_hook(_RankDropout(settings.rank_dropout))
    if settings.module_dropout:
        wrapped.lora_A[NAME].register_forward_hook(_ModuleDropout(settings.module_dropout))


@dataclass(frozen=True, slots=True)
class _RankDropout:
    """Rows that are kept are scaled by 1 / (1 - share), so that the mean stays."""

    share: float

    def __call__(self, module: nn.Module, _: tuple[Tensor, ...], rows: Tensor) -> Tensor | None:
        if not module.training:
            return None
        convolution = isinstance(module, nn.Conv2d)
        pictures, rank = len(rows), rows.shape[1 if convolution else -1]
        mask = (torch.rand(pictures, rank, device=rows.device) >= self.share).to(rows.dtype) / (1 - self.share)
        shape = (pictures, rank, 1, 1) if convolution else (pictures, *(1,) * (rows.ndim - 2), rank)
        return rows * mask.view(shape)


@dataclass(frozen=True, slots=True)
class _ModuleDropout:
    share: float

    def __call__(self, module: nn.Module, _: tuple[Tensor, ...], rows: Tensor) -> Tensor | None:
        if not module.training:
            return None
        return rows * (torch.rand((), device=rows.device) >= self.share).to(rows.dtype)
