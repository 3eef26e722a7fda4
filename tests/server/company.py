"""Requests at random, of everything that a request can ask for, and streams of them with cancellations."""

import io
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from random_adapters import ALL_PARTS, RandomAdapter, random_adapter, random_embedding

from loramux_server.requests import (
    BlendEntry,
    Event,
    GenerationRequest,
    Output,
    PartWeights,
    Priority,
    Sampler,
    TextMode,
)

RANKS = {"attention": 6, "feed": 3, "convolution": 7, "everything": 4, "few": 2, "text": 5}
POOL = 16
"""Rows of a pool that holds any two of these adapters beside row 0, and never all."""
WAITING = 24
"""Requests of a stream that wait or are drawn at once."""

_PARTS: dict[str, Sequence[str]] = {
    "attention": ("attn",),
    "feed": ("ff.net", "proj_"),
    "convolution": ("resnets", "q_proj"),
    "everything": ALL_PARTS,
    "few": ("attn2.", "text_encoder"),
    "text": ("text_encoder", "attn1."),
}
_LONG = ", ".join(["a red apple beside a dog"] * 16)
_PROMPTS = ("a red apple", "a (dog:1.4)", "a house on a [blue] background", _LONG)


def adapters(base: Path, folder: Path, strength: float = 0.5) -> list[RandomAdapter]:
    """One of each, of unequal ranks, and an embedding for the trigger "swirly"."""
    loras = [
        random_adapter(base, folder, name, rank=rank, alpha=rank / 2, strength=strength, seed=rank, parts=_PARTS[name])
        for name, rank in RANKS.items()
    ]
    return [*loras, random_embedding(base, folder, "swirly", vectors=3, seed=1)]


def random_request(dice: random.Random, seed: int) -> GenerationRequest:
    """Three steps to six; of one size, so that most share forwards. One in four lists the embedding."""
    request = _without_embedding(dice, seed)
    if seed % 4:
        return request
    blend = (*request.blend, BlendEntry("swirly", dice.choice([0.5, 1.0])))
    return replace(request, prompt=f"{request.prompt}, swirly", blend=blend)


def _without_embedding(dice: random.Random, seed: int) -> GenerationRequest:
    names = dice.sample(list(RANKS), dice.choice([0, 1, 1, 2, 2]))  # which the pool holds beside one another
    image = _picture(dice.randint(0, 3)) if dice.random() < 0.3 else None
    mask = _mask() if image is not None and dice.random() < 0.5 else None
    return GenerationRequest(
        prompt=dice.choice(_PROMPTS),
        negative_prompt=dice.choice(["", "", "a cat"]),
        text_mode=TextMode(clip_skip=dice.choice([0, 0, 1])),
        blend=_blend(dice, names),
        negative_blend=dice.choice([None, None, (), _blend(dice, names[1:])]),
        sampler=dice.choice(list(Sampler)),
        steps=dice.randint(3, 6),
        guidance_scale=dice.choice([1.0, 2.0, 5.0]),
        guidance_rescale=dice.choice([0.0, 0.5]),
        seed=seed,
        output=Output(preview_every=dice.choice([0, 0, 2])),
        image=image,
        strength=None if image is None else dice.choice([0.5, 1.0]),
        mask=mask,
        mask_blur=None if mask is None else dice.choice([0.0, 3.0]),
        priority=dice.choice(list(Priority)),
    )


def _blend(dice: random.Random, names: Sequence[str]) -> tuple[BlendEntry, ...]:
    return tuple(
        BlendEntry(
            name,
            dice.choice([-0.6, 0.3, 0.8, 1.0]),
            dice.choice([PartWeights(), PartWeights(unet=0.5, blocks=(("mid", 0.3), ("up.0", 1.5)))]),
            dice.choice([(), (), ((0.4, 0.2), (0.6, 1.0))]),
        )
        for name in names
    )


def _picture(seed: int) -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return _file(Image.fromarray(blocks).resize((40, 40)))


def _mask() -> bytes:
    return _file(Image.radial_gradient("L").resize((40, 40)))


def _file(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def stream(server: Any, asked: Sequence[GenerationRequest], dice: random.Random) -> list[np.ndarray]:
    """The first picture of each of `asked`, drawn beside others like them that are cancelled after one to five events;
    some wait at any time, and as few fit into a forward they join and leave it between steps."""
    pictures: list[np.ndarray] = []
    waiting = deque[Any]()
    for number, request in enumerate(asked, 1):
        waiting.append(server.submit(request))
        if dice.random() < 0.3:
            cancelled_after(server, random_request(dice, 1000 + number), dice.randint(1, 5))
        if len(waiting) == WAITING:
            pictures.append(waiting.popleft().pictures()[0])
    return pictures + [handle.pictures()[0] for handle in waiting]


def cancelled_after(server: Any, request: GenerationRequest, events: int) -> None:
    """Submits a request that is cancelled when it has heard so many events."""
    job = server.admission.admit(request)
    heard = 0

    def hear(_event: Event) -> None:
        nonlocal heard
        heard += 1
        if heard == events:
            server.runner.cancel(job.id)

    server.runner.submit(job, hear)
