"""Twenty steps give the vectors and factors of a plain loop with diffusers' and PEFT's own pieces, where the tokenizer
has new tokens, the token table has grown, and the gradients of all its other rows are masked."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import tiny_training as tiny
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from transformers import CLIPTokenizer

from loramux_train import plan
from loramux_train.batch import Batch
from loramux_train.injection import inject
from loramux_train.noise import Noise, draw_noise, draw_timesteps
from loramux_train.objective import TRAINING, generator_of
from loramux_train.optimiser_settings import OptimiserSettings
from loramux_train.recipe import Recipe
from loramux_train.run_settings import RunSettings
from loramux_train.target_settings import TargetSettings
from loramux_train.token_settings import NewToken, TokenSettings
from loramux_train.training import Training

STEPS = 20
RATE, TOKENS_RATE = 5e-4, 2e-3
NEW = (NewToken(word="<zib>", vectors=3, start="a red apple on the moon"), NewToken(word="my style"))
CAPTIONS = ("a <ZIB> on blue", "", "two cats", "the moon in my style", "<zib>, my style")
AS_TOKENS = {"<ZIB>": "<v0><v1><v2>", "<zib>": "<v0><v1><v2>", "my style": "<v3>"}


@dataclass(frozen=True)
class Captioned(tiny.MadeBatches):
    """Batches with and without new words, also some that have none at all."""

    def batch(self, position: int) -> Batch:
        captions = tuple(CAPTIONS[(2 * position + index) % len(CAPTIONS)] for index in range(self.count))
        return replace(super().batch(position), captions=captions)


def made(recipe: Recipe, two: bool, targets: TargetSettings) -> Training:
    base = tiny.base(two=two)
    planned = plan.make(base.parts(), targets, recipe.adapter, recipe.optimiser.name, 4, recipe.tokens)
    injected = inject(base.parts(), planned, recipe.adapter, recipe.run.seed)
    return Training(base, injected, Noise.of(base.outline.scheduler), Captioned(), recipe, Accelerator(cpu=True))


class Plain:
    """The same run with whole tables; `found` are its vectors and factors by the names ours have."""

    def __init__(self, training: Training, two: bool, targets: TargetSettings) -> None:
        self.recipe, self.two, self.base = training.recipe, two, tiny.base(two=two)
        self.tokenizer: Any = CLIPTokenizer.from_pretrained(tiny.TOKENIZER)
        self.tokenizer.add_tokens(["<v0>", "<v1>", "<v2>", "<v3>"])
        self.ids = self.tokenizer.convert_tokens_to_ids(["<v0>", "<v1>", "<v2>", "<v3>"])
        self.encoders: list[Any] = list(self.base.text_encoders)
        self.spreads = [float(encoder.get_input_embeddings().weight.std()) for encoder in self.encoders]
        self.factors: dict[str, torch.nn.Parameter] = {}
        alone = self.recipe.tokens.alone
        for part, model in () if alone else self.base.parts().items():
            names = ["to_q", "to_k", "to_v"] if part == "unet" else ["q_proj", "k_proj", "v_proj"]
            if part != "unet" and not targets.text_encoder:
                continue
            config = LoraConfig(r=4, lora_alpha=4, target_modules=names, init_lora_weights="gaussian")
            inject_adapter_in_model(config, model)
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    path, _, letter = name.removesuffix(".default.weight").rpartition(".lora_")
                    self.factors[f"{part}.{path}.{letter}"] = parameter
        self.tables: list[Any] = []
        for encoder in self.encoders:
            encoder.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
            self.tables.append(encoder.get_input_embeddings().weight.requires_grad_(True))
        with torch.no_grad():
            for name, parameter in self.factors.items():
                parameter.copy_(training.parameters[name])
            for table, part in zip(self.tables, ("text_encoder", "text_encoder_2"), strict=False):
                both = [training.parameters[f"tokens.{part}.{number}"] for number in (0, 1)]
                table[self.ids] = torch.cat(both)
        self.before = [table.detach().clone() for table in self.tables]

    def run(self) -> None:
        """All steps."""
        groups: list[dict[str, Any]] = [{"params": self.tables, "lr": TOKENS_RATE, "weight_decay": 0.0}]
        for part, rate in (("unet", RATE), ("text_encoder", RATE / 2)):
            chosen = [p for name, p in self.factors.items() if name.startswith(part)]
            groups += [{"params": chosen, "lr": rate, "weight_decay": 0.01}] if chosen else []
        optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.999))
        run = self.recipe.run
        for step in range(STEPS):
            live = step < self.recipe.tokens.stop * STEPS
            for position in range(step * run.accumulation, (step + 1) * run.accumulation):
                (self._loss(position) / run.accumulation).backward()
            for table in self.tables:
                others = torch.ones(len(table), dtype=torch.bool)
                others[self.ids] = False
                table.grad = table.grad.masked_fill(others[:, None], 0.0) if live else None
            torch.nn.utils.clip_grad_norm_([*self.tables, *self.factors.values()], 1.0)
            optimiser.step()
            if live and self.recipe.tokens.norm == "table":
                self._retract()
            optimiser.zero_grad()

    def _loss(self, position: int) -> Tensor:
        batch = Captioned().batch(position)
        generator = generator_of(self.recipe.run.seed, TRAINING, position)
        noise = draw_noise(batch.latents.shape, 0.0, generator)
        timesteps = draw_timesteps(len(batch.latents), 1000, generator)
        noisy = DDPMScheduler.from_config(self.base.outline.scheduler).add_noise(batch.latents, noise, timesteps)
        unet: Any = self.base.unet
        predicted = unet(noisy, timesteps, **self._conditions(batch)).sample
        return torch.nn.functional.mse_loss(predicted, noise)

    def _conditions(self, batch: Batch) -> dict[str, Any]:
        captions = list(batch.captions)
        for word, tokens in AS_TOKENS.items():
            captions = [caption.replace(word, tokens) for caption in captions]
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        out = [encoder(ids, output_hidden_states=True) for encoder in self.encoders]
        if not self.two:
            return {"encoder_hidden_states": out[0].last_hidden_state}
        sizes = torch.tensor([[16.0, 16, 1, 2, 16, 16]] * len(captions))
        context = torch.cat([each.hidden_states[-2] for each in out], dim=-1)
        added = {"text_embeds": out[1].text_embeds, "time_ids": sizes}
        return {"encoder_hidden_states": context, "added_cond_kwargs": added}

    @torch.no_grad()
    def _retract(self) -> None:
        for table, spread in zip(self.tables, self.spreads, strict=True):
            table[self.ids] = table[self.ids] * (spread / table[self.ids].std()) ** 0.1


CASES = {
    "alone": ({"alone": True}, {}, 1),
    "alone, free, accumulated": ({"alone": True, "norm": "free"}, {}, 2),
    "with factors, stopped half-way": ({"stop": 0.5}, {}, 1),
    "with factors in the text encoders": ({}, {"text_encoder": True}, 1),
}


@pytest.mark.parametrize("two", [False, True], ids=["one encoder", "two encoders"])
@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_are_those_of_a_masked_table(case: str, two: bool) -> None:
    tokens, targets, accumulation = CASES[case]
    recipe = Recipe(
        optimiser=OptimiserSettings(rate=RATE, text_encoder_rate=RATE / 2, warmup=0.0),
        run=RunSettings(steps=STEPS, accumulation=accumulation),
        tokens=TokenSettings.model_validate({"new": NEW, "rate": TOKENS_RATE, **tokens}),
    )
    training = made(recipe, two, TargetSettings.model_validate(targets))
    began = {name: value.detach().clone() for name, value in training.parameters.items()}
    held = {name: value.clone() for name, value in _weights(training).items()}
    plain = Plain(training, two, TargetSettings.model_validate(targets))
    plain.run()
    for _ in range(STEPS):
        training.step()
    expected = dict(plain.factors)
    for table, before, part in zip(plain.tables, plain.before, ("text_encoder", "text_encoder_2"), strict=False):
        expected |= {f"tokens.{part}.0": table[plain.ids[:3]], f"tokens.{part}.1": table[plain.ids[3:]]}
        assert torch.equal(table[: len(table) - 4], before[: len(table) - 4]), "the plain loop keeps other rows"
    assert training.parameters.keys() == expected.keys()
    for name, value in expected.items():
        unread = two and name.startswith("text_encoder.encoder.layers.1")  # SDXL reads the last but one
        assert unread or (training.parameters[name] - began[name]).abs().max() > 1e-3, "what is still shows nothing"
        assert (training.parameters[name] - value).abs().max() < 1e-5, name
    assert all(torch.equal(value, held[name]) for name, value in _weights(training).items())


def _weights(training: Training) -> dict[str, Tensor]:
    """Everything of the base, its token tables among it."""
    trained = {id(parameter) for parameter in training.parameters.values()}
    return {
        f"{part}.{name}": value.detach()
        for part, model in training.base.parts().items()
        for name, value in model.named_parameters()
        if id(value) not in trained
    }
