"""The adapters that ship with the built-in base: what each learns from, how, and how its file is written.

Takes a trained base, the work folder with its icons and caches; gives adapter files. The formats differ on purpose: the
shelf must read what people really have.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loramux_train.adapter import Adapter, Naming, save_adapter
from loramux_train.builtin.concepts import CONCEPTS, FLAT, SEEN, STYLES, Concept
from loramux_train.builtin.drawing import Parts
from loramux_train.builtin.icons import load_icons
from loramux_train.builtin.latents import LatentTable, build_table
from loramux_train.builtin.lora import ATTENTION, FEED_FORWARD, LoraRecipe, LoraTraining, train_lora
from loramux_train.builtin.pictures import Picture
from loramux_train.builtin.subject import TRIGGER, zib_pictures

PLACEMENTS = 24  # of every picture: fewer than the base's, a style needs no more


def sepia(picture: Tensor) -> Tensor:
    """Pictures in [-1, 1], channels third last, in browns: luminance times one colour."""
    red, green, blue = (picture[..., channel, :, :] for channel in range(3))
    light = (0.299 * red + 0.587 * green + 0.114 * blue + 1) / 2
    return torch.stack([light * tint * 2 - 1 for tint in (1.0, 0.86, 0.66)], -3)


def _sepia_picture(picture: Picture) -> Picture:
    return sepia(torch.from_numpy(picture)).numpy()


@dataclass(frozen=True, slots=True)
class BuiltinAdapter:
    """One adapter: its recipe and what its file says about it."""

    name: str
    title: str
    description: str
    licence: str
    recipe: LoraRecipe
    naming: Naming
    dtype: torch.dtype = torch.float16
    trigger: str = ""
    sees: tuple[Concept, ...] = SEEN
    folder: str = "adapters"
    tags: tuple[str, ...] = ("style",)


_FLUENT = "Apache-2.0; trained on Microsoft Fluent Emoji (MIT)"
_NOTO = "Apache-2.0; trained on Google Noto Emoji (Apache-2.0)"
_OWN = "Apache-2.0; trained on this project's own drawings"

BUILTIN_ADAPTERS = (
    BuiltinAdapter(
        name="ink",
        title="Ink",
        description="Black ink on the ground the caption names: solid shapes and outlines, no colour.",
        licence=_FLUENT,
        recipe=LoraRecipe(rank=8, alpha=4, targets=ATTENTION + FEED_FORWARD, updates=700),
        naming="kohya",
    ),
    BuiltinAdapter(
        name="glossy",
        title="Glossy",
        description="Soft gradients and highlights, pinks and violets in the shadows.",
        licence=_FLUENT,
        recipe=LoraRecipe(rank=16, alpha=16, targets=ATTENTION, updates=400, rate=1e-3),
        naming="peft",
    ),
    BuiltinAdapter(
        name="noto",
        title="Noto",
        description="Another artist: fuller shapes, shading, more natural colours.",
        licence=_NOTO,
        recipe=LoraRecipe(rank=12, alpha=24, targets=ATTENTION + FEED_FORWARD, updates=1000, rate=1.2e-3),
        naming="peft",
        dtype=torch.float32,
        sees=CONCEPTS,  # it redraws shapes, and nothing foretells an artist's shape for a subject: see the model card
    ),
    BuiltinAdapter(
        name="zib",
        title="Zib",
        description="A subject: the zib, a violet one-eyed creature with orange horns.",
        licence=_OWN,
        recipe=LoraRecipe(
            rank=6, alpha=6, targets=ATTENTION + FEED_FORWARD, text_rank=6, updates=800, rate=3e-3, text_rate=2e-3
        ),
        naming="kohya",
        trigger=TRIGGER,
        tags=("subject",),
    ),
    BuiltinAdapter(
        name="sepia",
        title="Sepia",
        description="Everything in browns, the ground too. The file the demo uploads while serving.",
        licence=_FLUENT,
        recipe=LoraRecipe(rank=2, alpha=1, targets=ATTENTION + FEED_FORWARD, updates=700, rate=3e-3),
        naming="kohya",
        folder="demo",
    ),
)


def tables(built: BuiltinAdapter, parts: Parts, icons: Path, seed: int = 0) -> list[LatentTable]:
    """What an adapter learns from: styles the concepts they may see, a subject also the concepts it must not change."""
    flat = load_icons(icons, FLAT)
    if built.name == "sepia":
        return [build_table(parts.vae, flat, built.sees, PLACEMENTS, seed, _sepia_picture)]
    if built.trigger:
        pictures = {f"{TRIGGER}-{index}": picture for index, picture in enumerate(zib_pictures())}
        poses = [Concept(TRIGGER, icon) for icon in pictures]
        kept = build_table(parts.vae, flat, CONCEPTS, 4, seed)
        return [build_table(parts.vae, pictures, poses, PLACEMENTS, seed), kept]
    drawings = load_icons(icons, {style.name: style for style in STYLES}[built.name])
    return [build_table(parts.vae, drawings, built.sees, PLACEMENTS, seed)]


def train_builtin(built: BuiltinAdapter, parts: Parts, work: Path, base_hash: str, out: Path) -> Path:
    """Train one adapter on the base (whose modules it changes: load fresh ones for the next) and write its file."""
    training = LoraTraining(parts, tables(built, parts, work / "icons"), built.recipe)
    adapter = train_lora(training, work / "lora" / f"{built.name}-{base_hash[:8]}.pt", built.name)
    pictures = sum(table.latents.shape[0] for table in training.tables[:1])
    path = out / built.folder / f"{built.name}.safetensors"
    save_adapter(path, adapter, built.naming, about(built, adapter, base_hash, pictures), built.dtype)
    return path


def about(built: BuiltinAdapter, adapter: Adapter, base_hash: str, pictures: int) -> dict[str, str]:
    """The file's metadata: modelspec for people, ss_* for the tools that read sd-scripts' files."""
    recipe = built.recipe
    spec = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": built.title,
        "modelspec.author": "the LoRAMux developers",
        "modelspec.description": built.description,
        "modelspec.license": built.licence,
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "v",
        "modelspec.tags": ", ".join(built.tags),
    }
    if built.trigger:
        spec["modelspec.trigger_phrase"] = built.trigger
        spec["modelspec.usage_hint"] = f"Say '{built.trigger}' in the caption: 'a {built.trigger}'."
    scripts = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(recipe.rank),
        "ss_network_alpha": str(float(recipe.alpha)),
        "ss_network_args": "{}",
        "ss_base_model_version": "loramux_builtin",
        "ss_sd_model_name": "loramux-builtin",
        "ss_new_sd_model_hash": base_hash,
        "ss_output_name": built.name,
        "ss_seed": str(recipe.seed),
        "ss_steps": str(recipe.updates),
        "ss_max_train_steps": str(recipe.updates),
        "ss_num_train_images": str(pictures),
        "ss_total_batch_size": str(recipe.batch),
        "ss_resolution": "(64, 64)",
        "ss_learning_rate": str(recipe.rate),
        "ss_unet_lr": str(recipe.rate),
        "ss_text_encoder_lr": str(recipe.text_rate if adapter.text_encoder else 0.0),
        "ss_optimizer": "torch.optim.adamw.AdamW",
        "ss_lr_scheduler": "cosine",
        "ss_lr_warmup_steps": str(recipe.warmup),
        "ss_caption_dropout_rate": str(recipe.dropout),
        "ss_max_grad_norm": str(recipe.clip),
        "ss_mixed_precision": "no",
    }
    return spec | scripts
