"""The diffusion stage: UNet and text encoder learn together to draw captions.

Takes a trained autoencoder, a tokenizer and the flat icons; gives the averaged UNet and text encoder. Knows no adapter.
The text encoder learns at a quarter of the UNet's rate: at the same rate the captions were ignored.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTokenizer

from loramux_train.builtin import checkpoint
from loramux_train.builtin.average import Average
from loramux_train.builtin.concepts import CONCEPTS, FLAT, caption
from loramux_train.builtin.denoiser import NoiseSchedule, build_text_encoder, build_unet
from loramux_train.builtin.drawing import Parts, draw, token_ids
from loramux_train.builtin.icons import load_icons
from loramux_train.builtin.latents import LatentTable, build_table
from loramux_train.builtin.schedule import cosine
from loramux_train.builtin.sheet import contact_sheet
from loramux_train.builtin.tokenizer import clip_merges, write_tokenizer


@dataclass(frozen=True, slots=True)
class JointRecipe:
    """Every number that shapes the result."""

    updates: int = 15_000
    batch: int = 16
    unet_rate: float = 1.5e-3
    text_rate: float = 4e-4
    decay: float = 0.997
    clip: float = 1.0
    dropout: float = 0.1
    placements: int = 48
    channels: tuple[int, int, int] = (48, 96, 128)
    seed: int = 0
    lanes: int = 2  # a batch is split over this many threads, one core each


class JointTraining:
    """The stage's state: two models, their averages and one optimiser, one `update` at a time."""

    def __init__(self, table: LatentTable, tokenizer: CLIPTokenizer, recipe: JointRecipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.table, self.tokenizer = recipe, table, tokenizer
        self.models = nn.ModuleDict(
            {"unet": build_unet(recipe.channels), "text_encoder": build_text_encoder(len(tokenizer))}
        ).train()
        unet, text = (list(self.models[name].parameters()) for name in ("unet", "text_encoder"))
        self.optimiser = torch.optim.AdamW(
            [{"params": unet, "peak": recipe.unet_rate}, {"params": text, "peak": recipe.text_rate}],
            weight_decay=1e-3,
            foreach=True,
        )
        self.average = Average(self.models, recipe.decay)
        self.schedule = NoiseSchedule()
        self.run = checkpoint.Run(recipe.seed)
        self._ids = {text: token_ids(tokenizer, [text])[0] for text in {"", *sum(table.captions, ())}}
        self._lanes = ThreadPoolExecutor(recipe.lanes, initializer=torch.set_num_threads, initargs=(1,))

    def update(self) -> float:
        """One step of the optimiser; returns the loss."""
        recipe, run = self.recipe, self.run
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * cosine(run.step, recipe.updates)
        latents, captions = self.table.batch(recipe.batch, run.random)
        dropped = run.random.random(recipe.batch) < recipe.dropout
        kept = ["" if drop else text for drop, text in zip(dropped, captions, strict=True)]
        loss = self._backward(latents, kept)
        nn.utils.clip_grad_norm_(self.models.parameters(), recipe.clip, foreach=True)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.average.update(self.models, run.step)
        run.step += 1
        run.losses.append(loss)
        return loss

    def caption_gap(self, count: int = 64) -> tuple[float, float]:
        """Loss on a fixed batch with the right captions and with captions shifted by one."""
        random, noise = checkpoint.Run(10_000).random, torch.Generator().manual_seed(10_000)
        latents, captions = self.table.batch(count, random)
        draws = torch.randn(latents.shape, generator=noise), self.schedule.sample_timesteps(count, noise)
        wrong = captions[1:] + captions[:1]
        with torch.no_grad():
            right_loss, wrong_loss = (self._loss(latents, text, *draws) for text in (captions, wrong))
        return right_loss.item(), wrong_loss.item()

    def parts(self, vae: AutoencoderKL) -> Parts:
        """The averaged models, ready to draw."""
        unet, text = build_unet(self.recipe.channels), build_text_encoder(len(self.tokenizer))
        nn.ModuleDict({"unet": unet, "text_encoder": text}).load_state_dict(self.average.weights)
        return Parts(self.tokenizer, text.eval(), unet.eval(), vae)

    def save(self, path: Path) -> None:
        """Checkpoint the stage."""
        states = {
            "models": self.models.state_dict(),
            "average": self.average.weights,
            "optimiser": self.optimiser.state_dict(),
        }
        checkpoint.save(path, self.run, states)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint."""
        states = checkpoint.load(path, self.run)
        self.models.load_state_dict(states["models"])
        self.average.weights = states["average"]
        self.optimiser.load_state_dict(states["optimiser"])

    def _backward(self, latents: Tensor, captions: list[str]) -> float:
        """Gradients of the mean loss, each lane's part of the batch on its own thread."""
        noise = torch.randn(latents.shape, generator=self.run.noise)
        timesteps = self.schedule.sample_timesteps(len(latents), self.run.noise)
        lanes = self.recipe.lanes
        pieces = [(latents[i::lanes], captions[i::lanes], noise[i::lanes], timesteps[i::lanes]) for i in range(lanes)]
        done = list(self._lanes.map(self._gradients, pieces))
        torch._foreach_div_(first := done[0][1], lanes)
        for _, gradients in done[1:]:
            torch._foreach_add_(first, gradients, alpha=1 / lanes)
        for parameter, gradient in zip(self.models.parameters(), first, strict=True):
            parameter.grad = gradient
        return sum(loss for loss, _ in done) / lanes

    def _gradients(self, piece: tuple[Tensor, list[str], Tensor, Tensor]) -> tuple[float, list[Tensor]]:
        loss = self._loss(*piece)
        return loss.item(), list(torch.autograd.grad(loss, list(self.models.parameters())))

    def _loss(self, latents: Tensor, captions: list[str], noise: Tensor, timesteps: Tensor) -> Tensor:
        context = self.models["text_encoder"](torch.stack([self._ids[text] for text in captions]))[0]
        noised, velocity = self.schedule.noised(latents, noise, timesteps)
        return (self.models["unet"](noised, timesteps, context).sample - velocity).square().mean()


def base_table(work: Path, recipe: JointRecipe) -> LatentTable:
    """The flat pictures of every concept, encoded; cached in the work folder."""
    cached = work / "latents.pt"
    if not cached.exists():
        vae = AutoencoderKL.from_pretrained(work / "vae").eval()
        table = build_table(vae, load_icons(work / "icons", FLAT), CONCEPTS, recipe.placements, recipe.seed)
        torch.save({"latents": table.latents, "captions": table.captions}, cached)
    saved = torch.load(cached, weights_only=True)
    return LatentTable(saved["latents"], saved["captions"])


def train_joint(work: Path, recipe: JointRecipe, minutes: float | None = None, until: int | None = None) -> Parts:
    """Train (or go on training); stops early after `minutes` or at update `until`, its schedule unchanged.

    Logs the caption gap every 200 updates and draws a sheet every 1000.
    """
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    write_tokenizer(work / "tokenizer", clip_merges())
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    stage, state = JointTraining(base_table(work, recipe), tokenizer, recipe), work / "joint.pt"
    if state.exists():
        stage.resume(state)
    started = saved = time.monotonic()
    while stage.run.step < min(recipe.updates, until or recipe.updates):
        stage.update()
        now = time.monotonic()
        if stage.run.step % 200 == 0:
            right, wrong = stage.caption_gap()
            mean = sum(stage.run.losses[-200:]) / 200
            place = f"joint update {stage.run.step}/{recipe.updates}"
            print(f"{place} loss {mean:.4f} right {right:.4f} wrong {wrong:.4f} {now - started:.0f}s", flush=True)
        if stage.run.step % 1000 == 0:
            _draw_sheet(stage.parts(vae), work / "sheets" / f"joint-{stage.run.step:06d}.png")
        if now - saved > 180:
            stage.run.seconds += now - saved
            stage.save(state)
            saved = now
        if minutes is not None and now - started > minutes * 60:
            break
    stage.run.seconds += time.monotonic() - saved
    stage.save(state)
    return stage.parts(vae)


def _draw_sheet(parts: Parts, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    captions = [caption(concept) for concept in CONCEPTS]
    contact_sheet(draw(parts, captions, [0] * len(captions)), 16).save(path)
