"""The settings that a training loop follows, together. Knows no files and no data."""

from dataclasses import dataclass, field

from loramux_train.adapter_settings import AdapterSettings
from loramux_train.loss_settings import LossSettings
from loramux_train.optimiser_settings import OptimiserSettings
from loramux_train.run_settings import RunSettings
from loramux_train.token_settings import TokenSettings


@dataclass(frozen=True, slots=True)
class Recipe:
    """Of one run; the optimiser's rates are resolved."""

    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    optimiser: OptimiserSettings = field(default_factory=lambda: OptimiserSettings(rate=1e-4, text_encoder_rate=5e-5))
    loss: LossSettings = field(default_factory=LossSettings)
    run: RunSettings = field(default_factory=RunSettings)
    tokens: TokenSettings = field(default_factory=TokenSettings)
