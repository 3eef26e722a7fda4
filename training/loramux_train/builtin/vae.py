"""The autoencoder stage: pictures to 16x16x4 latents and back.

Takes rendered icons of every style; gives a trained `AutoencoderKL` (64 px to 16x16, four channels). Knows no captions
and no diffusion. Half of each batch comes from the concepts, half from other icons, all styles alike, so that adapters
can reach styles the base itself never draws.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from loramux_train.builtin import checkpoint
from loramux_train.builtin.average import Average
from loramux_train.builtin.concepts import BACKGROUNDS, CONCEPTS, STYLES, WHITE
from loramux_train.builtin.icons import Rgba, load_icons
from loramux_train.builtin.pictures import SIZE, place, random_placement, to_array
from loramux_train.builtin.schedule import cosine

CROP = 32  # most updates see quarter pictures: four times the updates for the same work


@dataclass(frozen=True, slots=True)
class VaeRecipe:
    """Every number that shapes the result. `whole` is the last part of the run, which sees half its batch whole."""

    updates: int = 6000
    batch: int = 8
    rate: float = 1.5e-3
    decay: float = 0.998
    clip: float = 1.0
    kl: float = 1e-5
    gradient: float = 0.5
    whole: float = 0.15
    seed: int = 0


def build_vae() -> AutoencoderKL:
    """An untrained autoencoder of the shipped shape (769 k parameters)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def picture_loss(made: Tensor, real: Tensor, gradient: float) -> Tensor:
    """L1 + L2 + edges + L1 of 8x8 means (which ends hue shifts)."""
    across = F.l1_loss(made.diff(dim=-1), real.diff(dim=-1))
    down = F.l1_loss(made.diff(dim=-2), real.diff(dim=-2))
    tone = F.l1_loss(F.avg_pool2d(made, 8), F.avg_pool2d(real, 8))
    return F.l1_loss(made, real) + F.mse_loss(made, real) + gradient * (across + down) + tone


def divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the unit normal, per latent value."""
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()


class IconPool:
    """Random pictures of every style, concepts and other icons in equal parts."""

    def __init__(self, cache: Path) -> None:
        concepts = {concept.icon for concept in CONCEPTS}
        self._concepts: list[Rgba] = []
        self._others: list[Rgba] = []
        for style in STYLES:
            for name, icon in load_icons(cache, style).items():
                (self._concepts if name in concepts else self._others).append(icon)
        self._grounds = list(BACKGROUNDS.values())

    def batch(self, count: int, random: np.random.Generator) -> Tensor:
        """[count, 3, SIZE, SIZE]; three in four on white, the others on a caption colour or any colour."""
        return torch.from_numpy(np.stack([to_array(self._one(random)) for _ in range(count)]))

    def _one(self, random: np.random.Generator):
        icons = self._concepts if random.random() < 0.5 else self._others
        icon = icons[int(random.integers(len(icons)))]
        return place(icon, self._ground(random), random_placement(random))

    def _ground(self, random: np.random.Generator) -> tuple[int, int, int]:
        draw = random.random()
        if draw < 0.75:
            return WHITE
        if draw < 0.95:
            return self._grounds[int(random.integers(len(self._grounds)))]
        red, green, blue = (int(level) for level in random.integers(0, 256, 3))
        return red, green, blue


def crops(pictures: Tensor, random: np.random.Generator) -> Tensor:
    """A random CROP x CROP window of each picture, at multiples of the latent grid."""
    steps = (SIZE - CROP) // 4 + 1
    corners = random.integers(steps, size=(len(pictures), 2)) * 4
    windows = [p[:, y : y + CROP, x : x + CROP] for p, (y, x) in zip(pictures, corners, strict=True)]
    return torch.stack(windows)


class VaeTraining:
    """The stage's state: model, average and optimiser, one `update` at a time."""

    def __init__(self, cache: Path, recipe: VaeRecipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.pool = IconPool(cache)
        self.vae = build_vae().train()
        self.optimiser = torch.optim.AdamW(self.vae.parameters(), lr=recipe.rate, weight_decay=1e-4, foreach=True)
        self.average = Average(self.vae, recipe.decay)
        self.run = checkpoint.Run(recipe.seed)

    def update(self) -> float:
        """One step of the optimiser; returns the loss."""
        recipe, run = self.recipe, self.run
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate * cosine(run.step, recipe.updates)
        whole = run.step >= recipe.updates * (1 - recipe.whole) and run.step % 2 == 0
        pictures = self.pool.batch(recipe.batch if not whole else recipe.batch // 2, run.random)
        pictures = pictures if whole else crops(pictures, run.random)
        posterior = self.vae.encode(pictures).latent_dist
        made = self.vae.decode(posterior.sample(run.noise)).sample
        loss = picture_loss(made, pictures, recipe.gradient)
        (loss + recipe.kl * divergence(posterior.mean, posterior.logvar)).backward()
        nn.utils.clip_grad_norm_(self.vae.parameters(), recipe.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.average.update(self.vae, run.step)
        run.step += 1
        run.losses.append(loss.item())
        return run.losses[-1]

    def save(self, path: Path) -> None:
        """Checkpoint the stage."""
        states = {
            "model": self.vae.state_dict(),
            "average": self.average.weights,
            "optimiser": self.optimiser.state_dict(),
        }
        checkpoint.save(path, self.run, states)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint."""
        states = checkpoint.load(path, self.run)
        self.vae.load_state_dict(states["model"])
        self.average.weights = states["average"]
        self.optimiser.load_state_dict(states["optimiser"])


def latent_scale(vae: AutoencoderKL, pictures: Tensor) -> float:
    """The factor that gives latents of these pictures unit deviation."""
    with torch.no_grad():
        return float(1.0 / vae.encode(pictures).latent_dist.mean.std())


@torch.no_grad()
def peak_signal_to_noise(vae: AutoencoderKL, cache: Path) -> dict[str, float]:
    """Decibels of reconstruction over every concept, centred on white, by style."""
    result: dict[str, float] = {}
    for style in STYLES:
        icons = load_icons(cache, style)
        real = torch.from_numpy(np.stack([to_array(place(icons[c.icon], WHITE)) for c in CONCEPTS]))
        made = vae.decode(vae.encode(real).latent_dist.mean).sample.clamp(-1, 1)
        result[style.name] = float(10 * torch.log10(4.0 / (made - real).square().mean(dim=(1, 2, 3))).mean())
    return result


def train_vae(
    cache: Path, folder: Path, recipe: VaeRecipe, minutes: float | None = None, until: int | None = None
) -> AutoencoderKL:
    """Train (or go on training) and write the averaged model to `folder/vae`; may stop early, to resume later."""
    stage, state = VaeTraining(cache, recipe), folder / "vae.pt"
    if state.exists():
        stage.resume(state)
    started = saved = time.monotonic()
    while stage.run.step < min(recipe.updates, until or recipe.updates):
        stage.update()
        now = time.monotonic()
        if stage.run.step % 100 == 0:
            mean = sum(stage.run.losses[-100:]) / 100
            print(f"vae update {stage.run.step}/{recipe.updates} loss {mean:.4f} {now - started:.0f}s", flush=True)
        if now - saved > 120:
            stage.run.seconds += now - saved
            stage.save(state)
            saved = now
        if minutes is not None and now - started > minutes * 60:
            break
    stage.run.seconds += time.monotonic() - saved
    stage.save(state)
    vae = build_vae().eval()
    vae.load_state_dict(stage.average.weights)
    vae.register_to_config(scaling_factor=latent_scale(vae, stage.pool.batch(256, np.random.default_rng(1))))
    vae.save_pretrained(folder / "vae")
    return vae
