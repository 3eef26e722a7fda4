"""Twenty steps give the factors that plain PEFT and diffusers give for the same data, noise and seeds."""

from typing import Any

import pytest
import tiny_training as tiny
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from trained_factors import delta

from loramux_train import plan
from loramux_train.adapter_settings import AdapterSettings
from loramux_train.injection import Injected, inject
from loramux_train.loss_settings import LossSettings
from loramux_train.noise import Noise, draw_noise, draw_timesteps
from loramux_train.objective import TRAINING, generator_of
from loramux_train.optimiser_settings import OptimiserSettings
from loramux_train.recipe import Recipe
from loramux_train.run_settings import RunSettings
from loramux_train.target_settings import TargetSettings
from loramux_train.training import Training

STEPS = 20
RATE = 5e-4


def made(recipe: Recipe, prediction: str, batches: Any, targets: TargetSettings | None = None) -> Training:
    base = tiny.base(prediction)
    planned = plan.make(base.parts(), targets or TargetSettings(), recipe.adapter, recipe.optimiser.name, 4)
    injected = inject(base.parts(), planned, recipe.adapter, recipe.run.seed)
    return Training(base, injected, Noise.of(base.outline.scheduler), batches, recipe, Accelerator(cpu=True))


def plain(start: Injected, recipe: Recipe, prediction: str, batches: Any) -> dict[str, Tensor]:
    """The same run as the scripts of diffusers do it, from the same factors; {module path: A, B}."""
    base = tiny.base(prediction)
    unet: Any = base.unet
    inject_adapter_in_model(
        LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights="gaussian"), unet
    )
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_" in name:
                path, _, letter = name.removesuffix(".default.weight").rpartition(".lora_")
                parameter.copy_(start.parameters[f"unet.{path}.{letter}"])
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.999), weight_decay=0.01, eps=1e-8)
    scheduler = DDPMScheduler.from_config(base.outline.scheduler)
    tokenizer, encoder = base.tokenizers[0], base.text_encoders[0]
    for step in range(STEPS):
        for micro in range(recipe.run.accumulation):
            position = step * recipe.run.accumulation + micro
            batch = batches.batch(position)
            generator = generator_of(recipe.run.seed, TRAINING, position)
            noise = draw_noise(batch.latents.shape, 0.0, generator)
            timesteps = draw_timesteps(len(batch.latents), 1000, generator)
            ids = tokenizer(list(batch.captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
            noisy = scheduler.add_noise(batch.latents, noise, timesteps)
            predicted = unet(noisy, timesteps, encoder(ids)[0]).sample
            velocity = scheduler.get_velocity(batch.latents, noise, timesteps)
            target = noise if prediction == "epsilon" else velocity
            error = torch.nn.functional.mse_loss(predicted, target, reduction="none").mean(dim=[1, 2, 3])
            if recipe.loss.min_snr is not None:
                error = error * _snr_weights(scheduler, timesteps, recipe.loss.min_snr, prediction)
            (error.mean() / recipe.run.accumulation).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return {name: parameter.detach() for name, parameter in unet.named_parameters() if "lora_" in name}


def _snr_weights(scheduler: Any, timesteps: Tensor, gamma: float, prediction: str) -> Tensor:
    from diffusers.training_utils import compute_snr

    snr = compute_snr(scheduler, timesteps)
    least = torch.stack([snr, gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
    return least / snr if prediction == "epsilon" else least / (snr + 1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("min_snr", "accumulation"), [(None, 1), (5.0, 1), (None, 3), (5.0, 2)])
def test_twenty_steps_are_those_of_peft_and_diffusers(
    prediction: str, min_snr: float | None, accumulation: int
) -> None:
    recipe = Recipe(
        optimiser=OptimiserSettings(rate=RATE, text_encoder_rate=RATE, warmup=0.0),
        loss=LossSettings(min_snr=min_snr),
        run=RunSettings(steps=STEPS, accumulation=accumulation),
    )
    batches = tiny.MadeBatches(count=2)
    training = made(recipe, prediction, batches)
    start = {name: value.detach().clone() for name, value in training.injected.parameters.items()}
    expected = plain(training.injected, recipe, prediction, batches)
    for _ in range(STEPS):
        training.step()
    found = training.injected.parameters
    assert len(found) == len(expected)
    for name, value in expected.items():
        path, _, letter = name.removesuffix(".default.weight").rpartition(".lora_")
        own = found[f"unet.{path}.{letter}"].detach()
        assert (own - start[f"unet.{path}.{letter}"]).abs().max() > 1e-3, "a factor that does not move shows nothing"
        assert (own - value).abs().max() < 1e-5
    assert training.done == STEPS


def test_prior_weights_and_masks_multiply_with_min_snr() -> None:
    """diffusers#6356, #13797."""
    recipe = Recipe(loss=LossSettings(min_snr=5.0))
    batches = tiny.MadeBatches(count=3, weights=(1.0, 0.25, 0.0), masked=True)
    training = made(recipe, "v_prediction", batches)
    batch, base = batches.batch(7), training.base
    generator = generator_of(0, TRAINING, 7)
    noise, timesteps = draw_noise(batch.latents.shape, 0.0, generator), draw_timesteps(3, 1000, generator)
    scheduler, masks = DDPMScheduler.from_config(base.outline.scheduler), batch.masks
    assert masks is not None
    with torch.no_grad():
        loss = training.loss(batch, generator_of(0, TRAINING, 7))
        context = base.text_encoders[0](base.tokenizers[0](
            list(batch.captions), padding="max_length", truncation=True, return_tensors="pt").input_ids)[0]  # fmt: skip
        error = torch.stack([
            ((base.unet(scheduler.add_noise(batch.latents, noise, timesteps), timesteps, context).sample
              - scheduler.get_velocity(batch.latents, noise, timesteps))[i].square() * masks[i]).mean()
            for i in range(3)
        ])  # fmt: skip
    weights = _snr_weights(scheduler, timesteps, 5.0, "v_prediction") * torch.tensor([1.0, 0.25, 0.0])
    assert weights[1] not in (0.0, 0.25)
    assert torch.allclose(loss, (error * weights).sum() / 3, rtol=1e-5)


def test_alpha_and_rslora_scale_the_change() -> None:
    for rslora, scale in ((False, 6 / 4), (True, 6 / 2)):
        recipe = Recipe(adapter=AdapterSettings(rank=4, alpha=6.0, rslora=rslora))
        training = made(recipe, "epsilon", tiny.MadeBatches())
        name = training.injected.plan.layers[0].path
        layer: Any = training.base.unet.get_submodule(name)
        x = torch.randn(5, layer.in_features)
        with torch.no_grad():
            layer.lora_B["default"].weight.normal_()
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            assert torch.allclose(layer(x) - layer.base_layer(x), scale * x @ a.T @ b.T, atol=1e-5)
        factors = training.injected.modules()[0]
        assert torch.allclose(delta(factors).float(), scale * b @ a, atol=1e-5)
