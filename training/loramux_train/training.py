"""The training of an adapter, one step at a time.

Takes a base with factors in it, batches and a recipe; gives reports of steps and validation losses, and its whole state
as values. Knows no file. Everything random of a step is a function of the seed and the micro-step's position.
"""

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from loramux_train.average import Average, holding
from loramux_train.base import Base
from loramux_train.batch import Batch, Batches
from loramux_train.errors import Diverged
from loramux_train.injection import Injected
from loramux_train.noise import Noise, draw_noise, draw_timesteps
from loramux_train.objective import DROPOUT, TRAINING, VALIDATION, generator_of, seed_of, weighed_error
from loramux_train.optimisers import build, rate_factor, set_rates
from loramux_train.recipe import Recipe
from loramux_train.text import Text
from loramux_train.tokens.vectors import Tokens

_OVERFLOWS = 20  # steps in a row that fp16's loss scale may take to fall to where gradients fit: from 65536 to 1/16


class HeldOut(Batches, Protocol):
    """Batches that are measured and never learnt from, at positions 0 to their number."""

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Report:
    """A step, counted from 1: mean loss of its batches, rates of the optimiser's groups, norm of the gradients before
    clipping. learnt: whether the optimiser moved the factors, which it does not where fp16 overflowed."""

    step: int
    loss: float
    rates: tuple[float, ...]
    gradient_norm: float
    learnt: bool = True


class Training:
    """A run between two steps. done: steps done; parameters: all that learn, factors and vectors of new words, by name;
    average: of them, or None."""

    def __init__(
        self,
        base: Base,
        injected: Injected,
        noise: Noise,
        batches: Batches,
        recipe: Recipe,
        accelerator: Accelerator,
        tokens: Tokens | None = None,
    ) -> None:
        self.base, self.injected, self.batches, self.recipe = base, injected, batches, recipe
        self.done = 0
        self.tokens = Tokens(base, recipe.tokens, recipe.run.seed) if tokens is None else tokens
        self.text = Text(base, self.tokens)
        self.parameters = injected.parameters | self.tokens.parameters
        self._device = accelerator.device
        self._accelerator = accelerator
        self._noise = noise.to(self._device)
        self._dtype = next(p.dtype for p in base.unet.parameters() if not p.requires_grad)
        self._text_factors = injected.of(text=True)
        vectors = list(self.tokens.parameters.values())
        optimiser = build(injected.of(text=False), self._text_factors, recipe.optimiser, vectors, recipe.tokens.rate)
        self.optimiser: Any = accelerator.prepare(optimiser)
        decay = recipe.adapter.ema
        self.average = None if decay is None else Average(self.parameters, decay)
        self._overflows = 0
        if recipe.run.gradient_checkpointing:
            for model in (base.unet, *base.text_encoders):
                _checkpoint_gradients(model)

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.done >= self.recipe.run.steps

    @property
    def values(self) -> dict[str, Tensor]:
        """The factors and vectors as they are written: averaged, where an average is kept."""
        return dict(self.parameters) if self.average is None else self.average.values

    @property
    def scaler(self) -> Any:
        """fp16's loss scale, or None."""
        return self._accelerator.scaler

    def step(self) -> Report:
        """One update of the factors from `run.accumulation` batches.

        Raises:
            Diverged: for a loss or gradient that is not finite; the factors are as before.
        """
        recipe = self.recipe
        rates = set_rates(self.optimiser, rate_factor(self.done, recipe.run.steps, recipe.optimiser))
        self._training_mode()
        first = self.done * recipe.run.accumulation
        losses = [self._learn(position) for position in range(first, first + recipe.run.accumulation)]
        loss, norm = float(torch.stack(losses).mean()), float(self._clip())
        learnt = self._check(loss, norm)
        self.optimiser.step()
        if self.tokens.learning and learnt:
            self.tokens.retract()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.done)
        self.done += 1
        return Report(self.done, loss, tuple(rates), norm, learnt)

    @torch.no_grad()
    def validate(self, held_out: HeldOut) -> float:
        """The mean loss over pictures that were held out, at the same noises and timesteps every time."""
        self.base.unet.eval()
        self.text.train(False)
        averaged = self.text.apart() if self.average is not None and self._text_factors else nullcontext()
        with holding(self.parameters, self.values), averaged:
            losses = [loss for position in range(len(held_out)) for loss in self._measure(held_out, position)]
        pictures = sum(count for count, _ in losses)
        return sum(count * loss for count, loss in losses) / pictures

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss of a batch: error of the prediction, times the pictures' weights, masks, and min-SNR."""
        settings, device = self.recipe.loss, self._device
        latents = batch.latents.to(device)
        noise = draw_noise(latents.shape, settings.noise_offset, generator).to(device)
        timesteps = draw_timesteps(len(latents), len(self._noise.abar), generator).to(device)
        weights = batch.weights.to(device)
        if settings.min_snr is not None:
            weights = weights * self._noise.min_snr(timesteps, settings.min_snr)
        noised = self._noise.noised(latents, noise, timesteps).to(self._dtype)
        with self._accelerator.autocast():
            told = self.text.conditions(batch.captions, batch.sizes, (latents.shape[2], latents.shape[3]))
            predicted = self.base.unet(noised, timesteps, **told).sample
        masks = None if batch.masks is None else batch.masks.to(device)
        return weighed_error(predicted, self._noise.target(latents, noise, timesteps), weights, masks)

    def _learn(self, position: int) -> Tensor:
        adapter, seed = self.recipe.adapter, self.recipe.run.seed
        if adapter.dropout or adapter.rank_dropout or adapter.module_dropout:
            torch.manual_seed(seed_of(seed, DROPOUT, position))
        loss = self.loss(self.batches.batch(position), generator_of(seed, TRAINING, position))
        if loss.requires_grad:  # new words alone: a batch may have none
            self._accelerator.backward(loss / self.recipe.run.accumulation)
        return loss.detach()

    def _measure(self, held_out: HeldOut, position: int) -> Iterable[tuple[int, float]]:
        batch, run = held_out.batch(position), self.recipe.run
        for draw in range(run.validation_draws):
            generator = generator_of(run.seed, VALIDATION, position * run.validation_draws + draw)
            yield len(batch.latents), float(self.loss(batch, generator))

    def _training_mode(self) -> None:
        stop, tokens = self.recipe.optimiser.text_encoder_stop, self.tokens
        self.base.unet.train()
        tokens.learning = bool(tokens.parameters) and self.done < self.recipe.tokens.stop * self.recipe.run.steps
        encoders = bool(self._text_factors) and (stop is None or self.done < stop)
        self.text.train(encoders, settled=not tokens.learning)

    def _clip(self) -> Tensor:
        if self.tokens.learning:
            self._pad_gradients()
        self._accelerator.unscale_gradients(self.optimiser)
        moved = [p for p in self.parameters.values() if p.grad is not None]
        return torch.nn.utils.clip_grad_norm_(moved, self.recipe.optimiser.clip or math.inf)

    def _pad_gradients(self) -> None:
        """A word that no caption of the step has is one of gradient zero: it goes on by its momentum, as a row of a
        table would."""
        for vectors in self.tokens.parameters.values():
            if vectors.grad is None:
                vectors.grad = torch.zeros_like(vectors)

    def _check(self, loss: float, norm: float) -> bool:
        """Whether the optimiser will move; fp16's loss scale first has to fall to where gradients fit."""
        scaled = self._accelerator.scaler is not None
        if math.isfinite(loss) and math.isfinite(norm):
            self._overflows = 0
            return True
        self._overflows += 1
        if math.isfinite(loss) and scaled and self._overflows <= _OVERFLOWS:
            return False
        self.optimiser.zero_grad(set_to_none=True)
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradients is {norm}"
        raise Diverged(
            f"{what} at step {self.done + 1}, expected a finite number; lower optimiser.rate, raise optimiser.warmup, "
            "or use another run.precision than fp16"
        )


def _checkpoint_gradients(model: Any) -> None:
    """diffusers and transformers name it differently."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.enable_gradient_checkpointing()
