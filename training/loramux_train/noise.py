"""The noise of a base: how latents are noised, what the UNet predicts of them, and what a timestep's loss weighs.

Takes a scheduler's configuration, latents, noise and timesteps; gives noised latents, targets and weights. Knows no
model. The letters are those of DDPM (Ho et al. 2020): x_t = sqrt(abar_t) x + sqrt(1 - abar_t) e.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from loramux_train.errors import BadBase

Prediction = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True, slots=True)
class Noise:
    """abar: [timesteps], fp32, the share of the signal's power that is left; prediction: what the UNet predicts."""

    abar: Tensor
    prediction: Prediction

    @classmethod
    def of(
        cls, scheduler: Mapping[str, Any], prediction: Literal["auto", "epsilon", "v_prediction"] = "auto"
    ) -> "Noise":
        """The noise that a base's scheduler configuration describes.

        Raises:
            BadBase: for a prediction that is neither the noise nor the velocity, or one that cannot be learnt.
        """
        said = scheduler.get("prediction_type", "epsilon") if prediction == "auto" else prediction
        if said not in ("epsilon", "v_prediction"):
            raise BadBase(f"the base's scheduler has prediction_type {said}, expected epsilon or v_prediction")
        known = {key: value for key, value in scheduler.items() if key in _KNOWN}
        abar = DDPMScheduler(**known).alphas_cumprod.float()
        if said == "epsilon" and float(abar[-1]) == 0.0:
            raise BadBase("the base's last timestep is all noise (zero terminal SNR), from which no noise can be told: "
                          "expected prediction_type v_prediction")  # fmt: skip
        return cls(abar, said)

    def to(self, device: torch.device) -> "Noise":
        """The same on a device."""
        return Noise(self.abar.to(device), self.prediction)

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t [n, c, h, w] of latents, noise and [n] timesteps."""
        signal, spread = self._amplitudes(timesteps)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the UNet should predict: e, or v = sqrt(abar) e - sqrt(1 - abar) x (Salimans and Ho 2022)."""
        if self.prediction == "epsilon":
            return noise
        signal, spread = self._amplitudes(timesteps)
        return signal * noise - spread * latents

    def min_snr(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Weights [n] of the loss (Hang et al. 2023), with SNR = abar / (1 - abar).

        A loss on e is one on x times 1/SNR, a loss on v one on x times 1/(SNR + 1); the weight of x is min(SNR, gamma).
        """
        abar = self.abar[timesteps]
        snr = abar / (1 - abar)
        own = snr if self.prediction == "epsilon" else snr + 1
        return snr.clamp(max=gamma) / own

    def _amplitudes(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        abar = self.abar[timesteps].view(-1, 1, 1, 1)
        return abar.sqrt(), (1 - abar).sqrt()


_KNOWN = frozenset(
    {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"}
)


def draw_timesteps(count: int, total: int, generator: torch.Generator) -> Tensor:
    """[count] timesteps of 0 to total - 1, each uniform, one in each of `count` equal parts in a random order.

    The parts keep a small batch from seeing one end of the range only; the order keeps a picture's place in the batch
    from deciding its noise.
    """
    order = torch.randperm(count, generator=generator)
    place = (order + torch.rand(count, generator=generator, dtype=torch.float64)) / count
    return (place * total).long().clamp(max=total - 1)


def draw_noise(shape: torch.Size, offset: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise [n, c, h, w], plus `offset` times one number for each picture and channel (noise offset)."""
    noise = torch.randn(shape, generator=generator)
    if offset:
        noise = noise + offset * torch.randn((*shape[:2], 1, 1), generator=generator)
    return noise
