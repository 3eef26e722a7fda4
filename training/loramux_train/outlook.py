"""What a run would do, found out before any weight is read.

Takes settings; gives the base's outline, the plan and the layout that the adapter must fit. Refuses what cannot be
trained, or could not be written afterwards.
"""

from dataclasses import dataclass

import torch

from loramux_store.layout import Layout
from loramux_train import base, plan
from loramux_train.config import Config
from loramux_train.errors import BadSetting
from loramux_train.noise import Noise
from loramux_train.optimisers import check_installed
from loramux_train.outline import Outline
from loramux_train.output import adapter_file
from loramux_train.output.base_layout import canonical_path, layout_of
from loramux_train.plan import Plan
from loramux_train.tokens.checks import check_settings

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Outlook:
    """precision: of the base and the forward, a key of DTYPES; warnings: of what will be written."""

    outline: Outline
    plan: Plan
    layout: Layout
    noise: Noise
    precision: str
    warnings: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """Of the base."""
        return DTYPES[self.precision]


def outlook_of(config: Config) -> Outlook:
    """What a run would do.

    Raises:
        BadBase, BadSetting, PackageMissing: for what would stop it.
        Unsayable: for what `output.form` could not say.
    """
    outline = base.outline_of(base.find(config.base.path))
    noise = Noise.of(outline.scheduler, config.base.prediction)
    check_installed(config.optimiser.name)
    _check_text_encoder_stop(config)
    check_settings(config)
    parts = base.meta_parts(outline)
    precision = _precision(config)
    size = torch.finfo(DTYPES[precision]).bits // 8
    made = plan.make(parts, config.targets, config.adapter, config.optimiser.name, size, config.tokens)
    layout = layout_of(parts, base.name_of(config.base.path))
    trained = [
        adapter_file.Planned(canonical_path(layer.part, layer.path), layer.rank, layer.dora, layer.scale)
        for layer in made.layers
    ]
    warnings = adapter_file.check_form(config.output.form, trained, layout)
    return Outlook(outline, made, layout, noise, precision, warnings)


def _check_text_encoder_stop(config: Config) -> None:
    stop = config.optimiser.text_encoder_stop
    if stop is not None and not config.targets.text_encoder:
        raise BadSetting(f"optimiser.text_encoder_stop is {stop}, but targets.text_encoder is false: no text encoder "
                         "learns; set that true, or leave this out")  # fmt: skip


def _precision(config: Config) -> str:
    cuda = torch.cuda.is_available() and config.run.device == "auto"
    if config.run.precision == "auto":
        return "bf16" if cuda and torch.cuda.is_bf16_supported() else "fp32"
    if config.run.precision == "fp16" and not cuda:
        raise BadSetting("run.precision is fp16, which needs a CUDA device; expected fp32 or bf16")
    return config.run.precision
