"""What the mean squared error is weighed by. Knows no tensor."""

from pydantic import Field

from loramux_train.section import Section


class LossSettings(Section):
    """The loss beside the weights and masks that the data brings."""

    min_snr: float | None = Field(
        default=None, gt=0, description="gamma of min-SNR weighting, 5 is usual; unset: every timestep weighs 1."
    )
    noise_offset: float = Field(
        default=0.0,
        ge=0,
        description="Share of noise that is one number a channel, for very dark and bright pictures; up to 0.1.",
    )
