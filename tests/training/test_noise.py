"""Noise, targets and min-SNR weights are those of diffusers' schedulers and helpers."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from loramux_train.errors import BadBase
from loramux_train.noise import Noise, draw_noise, draw_timesteps

CONFIG: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noised_latents_and_targets_are_those_of_diffusers(prediction: str) -> None:
    scheduler = DDPMScheduler(**CONFIG)
    noise = Noise.of({**CONFIG, "prediction_type": prediction, "_class_name": "EulerDiscreteScheduler"})
    latents, e = torch.randn(2, 8, 4, 5, 5, generator=torch.Generator().manual_seed(0)).unbind()
    timesteps = torch.tensor([0, 1, 100, 500, 800, 998, 999, 300])
    assert torch.equal(noise.noised(latents, e, timesteps), scheduler.add_noise(latents, e, timesteps))
    target = e if prediction == "epsilon" else scheduler.get_velocity(latents, e, timesteps)
    assert torch.equal(noise.target(latents, e, timesteps), target)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_divides_by_snr_for_noise_and_by_snr_plus_one_for_velocity(gamma: float) -> None:
    """diffusers#5654, #5238, kohya-ss/sd-scripts#673."""
    timesteps = torch.arange(1000)
    snr = compute_snr(DDPMScheduler(**CONFIG), timesteps).double()
    assert snr.min() < 0.01 and snr.max() > 1000
    epsilon, velocity = (Noise.of({**CONFIG, "prediction_type": p}) for p in ("epsilon", "v_prediction"))
    for noise, own in ((epsilon, snr), (velocity, snr + 1)):
        expected = snr.clamp(max=gamma) / own
        assert torch.allclose(noise.min_snr(timesteps, gamma).double(), expected, rtol=1e-3)


def test_terminal_timestep_of_a_velocity_base_weighs_nothing_and_stays_finite() -> None:
    noise = Noise.of({**CONFIG, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True})
    assert noise.min_snr(torch.tensor([999]), 5.0).tolist() == [0.0]


def test_noise_cannot_be_told_from_noise_alone() -> None:
    with pytest.raises(BadBase, match="zero terminal SNR"):
        Noise.of({**CONFIG, "prediction_type": "epsilon", "rescale_betas_zero_snr": True})


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(BadBase, match="prediction_type sample, expected epsilon or v_prediction"):
        Noise.of({**CONFIG, "prediction_type": "sample"})


def test_timesteps_are_uniform_wherever_a_picture_lies_in_its_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw_timesteps(4, 1000, generator) for _ in range(4000)])
    assert drawn.min() == 0 and drawn.max() == 999
    for place in range(4):  # the mean of 4000 uniform draws has a deviation of 4.6
        assert abs(drawn[:, place].float().mean() - 499.5) < 20
    assert ((drawn.sort(dim=1).values // 250) == torch.arange(4)).all(), "one in each quarter"


def test_noise_offset_is_one_number_a_channel() -> None:
    shape = torch.Size((64, 4, 16, 16))
    plain = draw_noise(shape, 0.0, torch.Generator().manual_seed(1))
    moved = draw_noise(shape, 0.5, torch.Generator().manual_seed(1)) - plain
    assert (moved - moved.mean(dim=(2, 3), keepdim=True)).abs().max() < 1e-6
    assert abs(moved.mean(dim=(2, 3)).std() - 0.5) < 0.1
