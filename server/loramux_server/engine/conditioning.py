"""What the UNet is given beside latents and timesteps: text, pooled text, size and crop, guidance scale.

Takes the base, a job's texts with their blends, its size and guidance; gives tensors by row, and joins those of many
pictures into one forward's. It knows no layers and no queue.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from loramux_server.embeddings import Acting, acting
from loramux_server.engine.blends import PlacedBlend
from loramux_server.engine.bytes_lru import BytesLru
from loramux_server.engine.layer_group import LayerGroup
from loramux_server.engine.pipeline import Base
from loramux_server.engine.text import BlendedText, Encoded, Inversion, PromptEncoder, Trigger
from loramux_server.errors import Violation
from loramux_server.requests import Job, Prompt, TextMode


@dataclass(frozen=True, slots=True)
class Given:
    """Of one picture's rows: text [rows, tokens, width], pooled [rows, width], size [rows, 6], guidance [rows, width].

    The last three are None on bases whose UNet has no input for them.
    """

    text: Tensor
    pooled: Tensor | None = None
    size: Tensor | None = None
    guidance: Tensor | None = None

    @property
    def rows(self) -> int:
        """Of the UNet's batch."""
        return len(self.text)

    def by_row(self) -> "list[Given]":
        """The same for each row alone."""
        parts = (self.text, self.pooled, self.size, self.guidance)
        return [Given(*(part if part is None else part[i : i + 1] for part in parts)) for i in range(self.rows)]  # pyright: ignore[reportArgumentType]


def blank(base: Base, rows: int) -> Given:
    """What says nothing, of the right shapes: for trying a forward out."""
    config: Any = base.unet.config
    zeros = partial(torch.zeros, device=base.device, dtype=base.unet.dtype)
    projected = getattr(base.text_encoders[-1].model.config, "projection_dim", 0)
    pooled = config["addition_embed_type"] == "text_time"
    return Given(
        zeros(rows, 77, config["cross_attention_dim"]),
        zeros(rows, projected) if pooled else None,
        zeros(rows, 6) if pooled else None,
        None if base.guidance_width is None else zeros(rows, base.guidance_width),
    )


def unet_arguments(given: Sequence[Given], dtype: torch.dtype) -> dict[str, Any]:
    """The UNet's keyword arguments for the rows of several pictures, one after another."""
    text, mask = side_by_side([each.text for each in given])
    pooled = [each.pooled for each in given if each.pooled is not None]
    size = [each.size for each in given if each.size is not None]
    guidance = [each.guidance for each in given if each.guidance is not None]
    return {
        "encoder_hidden_states": text,
        "encoder_attention_mask": mask,
        "added_cond_kwargs": {"text_embeds": torch.cat(pooled), "time_ids": torch.cat(size)} if pooled else None,
        "timestep_cond": torch.cat(guidance).to(dtype) if guidance else None,
    }


def side_by_side(embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Embeddings [rows, tokens, width] of all rows, filled up with zeros, and a mask [rows, tokens] of what is text;
    no mask where all are equally long."""
    longest = max(each.shape[1] for each in embeddings)
    if all(each.shape[1] == longest for each in embeddings):
        return torch.cat(list(embeddings)), None
    filled = [F.pad(each, (0, 0, 0, longest - each.shape[1])) for each in embeddings]
    lengths = torch.tensor([each.shape[1] for each in embeddings for _ in each], device=embeddings[0].device)
    mask = torch.arange(longest, device=lengths.device)[None, :] < lengths[:, None]
    return torch.cat(filled), mask


def guidance_embedding(scale: float, width: int) -> Tensor:
    """[1, width]: sines and cosines of 1000 (scale - 1), as latent consistency models were trained with
    (arXiv:2310.04378, section 4.2; w there is scale - 1)."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half) * -(math.log(10000.0) / (half - 1)))
    angles = (torch.tensor(scale - 1) * 1000.0 * frequencies)[None]
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


class Conditioner:
    """Turns a job's texts, size and guidance scale into what its pictures' rows are given."""

    def __init__(self, base: Base, groups: Mapping[str, LayerGroup], cache: BytesLru[Encoded]) -> None:
        self._base, self._cache = base, cache
        self.encoders = tuple(
            PromptEncoder(encoder, groups[encoder.name], base.device, cache, skips_last_layer=base.skips_last_layer)
            for encoder in base.text_encoders
        )

    @property
    def nbytes(self) -> int:
        """Of the texts that are kept."""
        return self._cache.nbytes

    def violations(self, prompts: Sequence[Prompt], mode: TextMode) -> list[Violation]:
        """What is wrong with prompts by field, each fault once, though every text encoder has it; and embeddings that
        would act in none of them."""
        found: dict[str, Violation] = {}
        listed: dict[tuple[str, int], Acting] = {}
        heard: set[tuple[str, int]] = set()
        for encoder in self.encoders:
            texts: dict[str, tuple[str, list[Trigger]]] = {}
            for prompt in prompts:
                there = acting(prompt.blend, encoder.name)
                places = [(prompt.blend_field, each.place) for each in there]
                triggers = [Trigger(each.embedding.trigger, each.embedding.vectors) for each in there]
                texts[prompt.field] = prompt.text, triggers
                listed |= {place: each for place, each in zip(places, there, strict=True) if not each.bundled}
                heard |= {places[index] for index in encoder.found(prompt.text, mode, triggers)}
            found |= {violation.field: violation for violation in encoder.violations(texts, mode)}
        silent = [_unheard(prompts, place[0], each) for place, each in listed.items() if place not in heard]
        return [*found.values(), *silent]

    def given(self, job: Job, blends: Sequence[PlacedBlend]) -> Given:
        """For the rows of one picture of the job: unconditional first where guided."""
        texts = [job.negative_prompt, job.prompt] if job.guided else [job.prompt]
        text, pooled = self.encode(list(zip(texts, blends, strict=True)), job.text_mode)
        if job.guided and self._base.zeros_for_no_text and not job.negative_prompt:
            text[0].zero_()
            if pooled is not None:
                pooled[0].zero_()
        rows, device, width = len(texts), self._base.device, self._base.guidance_width
        sizes = [job.negative_sizes, job.sizes] if job.guided else [job.sizes]
        told = [each.numbers for each in sizes if each is not None]
        scale = job.sampling.guidance_scale
        return Given(
            text,
            pooled,
            torch.tensor(told, dtype=torch.float32, device=device) if told else None,
            None if width is None else guidance_embedding(scale, width).to(device).expand(rows, -1),
        )

    def encode(self, texts: Sequence[tuple[str, PlacedBlend]], mode: TextMode) -> tuple[Tensor, Tensor | None]:
        """Embeddings [texts, tokens, width] of all text encoders side by side; pooled ones [texts, width] of the last,
        if it has a projection."""
        blended = [[_blended(text, blend, encoder.name) for text, blend in texts] for encoder in self.encoders]
        pairs = list(zip(self.encoders, blended, strict=True))
        chunks = max(encoder.count(text.text, mode, text.triggers) for encoder, each in pairs for text in each)
        found = [encoder.encode(each, mode, chunks) for encoder, each in pairs]
        return torch.cat([each.hidden for each in found], dim=-1), found[-1].pooled


def _blended(text: str, blend: PlacedBlend, encoder: str) -> BlendedText:
    there = acting([weighted for weighted, _ in blend.embeddings], encoder)
    inversions = tuple(
        Inversion(each.embedding.trigger, blend.embeddings[each.place][1][each.number][encoder], each.factor)
        for each in there
    )
    key = _text_key(blend, encoder), tuple((each.weighted.version.digest, each.number, each.factor) for each in there)
    return BlendedText(text, blend.in_text_encoder(encoder), key, inversions)


def _unheard(prompts: Sequence[Prompt], blend: str, each: Acting) -> Violation:
    """An embedding whose trigger stands in no text that is read with its blend."""
    texts = " or ".join(prompt.field for prompt in prompts if prompt.blend_field == blend)
    name = f"{each.weighted.version.adapter}@{each.weighted.version.number}"
    said = f"is the embedding {name}, expected its trigger {each.embedding.trigger!r} in {texts}"
    return Violation(f"{blend}.entries[{each.place}].adapter", said)


def _text_key(blend: PlacedBlend, encoder: str) -> Hashable:
    """What the blend does to a text encoder, for good."""
    scales = [
        (weighted.version.digest, weighted.in_text_encoder(encoder))
        for weighted, _ in blend.adapters
        if any(path.startswith(f"{encoder}.") for path in weighted.version.ranks)
    ]
    return tuple((digest, scale) for digest, scale in scales if scale != 0)
