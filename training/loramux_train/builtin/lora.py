"""The adapter trainer: low-rank factors beside a frozen base.

Takes a base, tables of latents with captions and a recipe; gives an `Adapter`. Knows no file format and no picture.
A starts gaussian and B at zero, so a fresh adapter is an exact no-op; factors stay in fp32 whatever the base's type.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from loramux_train.adapter import Adapter, Factors
from loramux_train.builtin import checkpoint
from loramux_train.builtin.denoiser import NoiseSchedule
from loramux_train.builtin.drawing import Parts, token_ids
from loramux_train.builtin.latents import LatentTable
from loramux_train.builtin.schedule import cosine

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")  # what kohya's `networks.lora` trains besides
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True, slots=True)
class LoraRecipe:
    """Every number that shapes an adapter. `text_rank` 0 leaves the text encoder alone."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = ATTENTION
    text_rank: int = 0
    updates: int = 600
    batch: int = 8
    rate: float = 2e-3
    text_rate: float = 5e-4
    clip: float = 1.0
    dropout: float = 0.1
    warmup: int = 30
    seed: int = 0


def inject(module: nn.Module, rank: int, alpha: float, targets: Sequence[str]) -> list[nn.Parameter]:
    """Add factors to every module whose path ends in a target; freeze the rest; return what trains."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian")  # type: ignore[arg-type]
    module.requires_grad_(False)
    inject_adapter_in_model(config, module)
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def extract(module: nn.Module, prefix: str = "") -> dict[str, Factors]:
    """The factors that `inject` added, by module path."""
    every: list[tuple[str, Any]] = list(module.named_modules())
    return {
        prefix + path: Factors(
            layer.lora_A["default"].weight.detach().clone(),
            layer.lora_B["default"].weight.detach().clone(),
            float(layer.lora_alpha["default"]),
        )
        for path, layer in every
        if hasattr(layer, "lora_A")
    }


def set_weight(module: nn.Module, weight: float) -> None:
    """Scale the factors' effect as a request's weight would."""
    for layer in module.modules():
        if hasattr(layer, "lora_A"):
            layer.scaling["default"] = weight * layer.lora_alpha["default"] / layer.r["default"]  # type: ignore[index]


def set_weights(parts: Parts, weight: float) -> None:
    """Scale an applied adapter's effect on the whole base."""
    set_weight(parts.unet, weight)
    set_weight(parts.text_encoder, weight)


@torch.no_grad()
def apply(parts: Parts, adapter: Adapter) -> None:
    """Put an adapter's factors into a base that has none yet, at weight 1."""
    for module, factors, prefix in (
        (parts.unet, adapter.unet, ""),
        (parts.text_encoder, adapter.text_encoder, text_prefix(parts.text_encoder)),
    ):
        if not factors:
            continue
        paths = {(prefix + name).replace(".", "_"): name for name, _ in module.named_modules()}
        targets = {paths[path.replace(".", "_")]: path for path in factors}
        ranks = {target: factors[path].rank for target, path in targets.items()}
        alphas = {target: factors[path].alpha for target, path in targets.items()}
        config = LoraConfig(r=1, lora_alpha=1, target_modules=list(targets), rank_pattern=ranks, alpha_pattern=alphas)  # type: ignore[arg-type]
        inject_adapter_in_model(config, module)
        for target, path in targets.items():
            layer: Any = module.get_submodule(target)
            layer.lora_A["default"].weight.copy_(factors[path].down)
            layer.lora_B["default"].weight.copy_(factors[path].up)


def text_prefix(text_encoder: nn.Module) -> str:
    """What module paths lack of the names files use: transformers 5 dropped the `text_model` level."""
    return "" if hasattr(text_encoder, "text_model") else "text_model."


class LoraTraining:
    """The run's state: a base with factors in it and their optimiser, one `update` at a time."""

    def __init__(self, parts: Parts, tables: Sequence[LatentTable], recipe: LoraRecipe) -> None:
        torch.manual_seed(recipe.seed)
        self.parts, self.tables, self.recipe = parts, tables, recipe
        groups: list[dict[str, Any]] = [
            {"params": inject(parts.unet, recipe.rank, recipe.alpha, recipe.targets), "peak": recipe.rate}
        ]
        parts.text_encoder.requires_grad_(False)
        if recipe.text_rank:
            text = inject(parts.text_encoder, recipe.text_rank, recipe.text_rank, TEXT)
            groups.append({"params": text, "peak": recipe.text_rate})
        self.trained: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=1e-3, foreach=True)
        self.schedule = NoiseSchedule()
        self.run = checkpoint.Run(recipe.seed)
        self._contexts: dict[str, Tensor] = {}

    def update(self) -> float:
        """One step of the optimiser; returns the loss. Refuses to go on from a loss that is not finite."""
        recipe, run = self.recipe, self.run
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * cosine(run.step, recipe.updates, recipe.warmup)
        latents, captions = self._batch(run.random)
        noise = torch.randn(latents.shape, generator=run.noise)
        timesteps = self.schedule.sample_timesteps(len(latents), run.noise)
        noised, velocity = self.schedule.noised(latents, noise, timesteps)
        loss = (self.parts.unet(noised, timesteps, self._context(captions)).sample - velocity).square().mean()
        if not loss.isfinite():
            raise FloatingPointError(f"loss is {loss.item()} at update {run.step}; lower the rate")
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, recipe.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        run.step += 1
        run.losses.append(loss.item())
        return run.losses[-1]

    def adapter(self) -> Adapter:
        """What has been learnt so far."""
        return Adapter(extract(self.parts.unet), extract(self.parts.text_encoder, text_prefix(self.parts.text_encoder)))

    def save(self, path: Path) -> None:
        """Checkpoint the run: the factors and their optimiser, never the base."""
        states = {"factors": dict(enumerate(self.trained)), "optimiser": self.optimiser.state_dict()}
        checkpoint.save(path, self.run, states)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint."""
        states = checkpoint.load(path, self.run)
        with torch.no_grad():
            for index, parameter in enumerate(self.trained):
                parameter.copy_(states["factors"][index])
        self.optimiser.load_state_dict(states["optimiser"])

    def _batch(self, random: np.random.Generator) -> tuple[Tensor, list[str]]:
        """Every table contributes an equal part; some captions are dropped."""
        share = self.recipe.batch // len(self.tables)
        drawn = [table.batch(share, random) for table in self.tables]
        captions = [text for _, texts in drawn for text in texts]
        dropped = random.random(len(captions)) < self.recipe.dropout
        kept = ["" if drop else text for drop, text in zip(dropped, captions, strict=True)]
        return torch.cat([latents for latents, _ in drawn]), kept

    def _context(self, captions: list[str]) -> Tensor:
        """Text embeddings: fresh while the text encoder learns, remembered otherwise."""
        if self.recipe.text_rank:
            return self.parts.text_encoder(token_ids(self.parts.tokenizer, captions))[0]
        with torch.no_grad():
            for text in set(captions) - self._contexts.keys():
                self._contexts[text] = self.parts.text_encoder(token_ids(self.parts.tokenizer, [text]))[0][0]
        return torch.stack([self._contexts[text] for text in captions])


def train_lora(training: LoraTraining, state: Path, name: str, minutes: float | None = None) -> Adapter:
    """Train (or go on training) to the end of the recipe or of `minutes`; keeps a checkpoint at `state`."""
    if state.exists():
        training.resume(state)
    updates = training.recipe.updates
    if training.run.step >= updates:
        print(f"{name}: already at update {training.run.step} of {updates}; raise updates to go on", flush=True)
    started = saved = time.monotonic()
    while training.run.step < updates:
        training.update()
        now = time.monotonic()
        if training.run.step % 100 == 0:
            mean = sum(training.run.losses[-100:]) / 100
            print(f"{name} update {training.run.step}/{updates} loss {mean:.4f} {now - started:.0f}s", flush=True)
        if now - saved > 60:
            training.run.seconds += now - saved
            training.save(state)
            saved = now
        if minutes is not None and now - started > minutes * 60:
            break
    training.run.seconds += time.monotonic() - saved
    training.save(state)
    return training.adapter()
