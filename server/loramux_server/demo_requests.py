"""What the demo asks for: many different blends at once, then the same pictures with every adapter.

Takes: the adapters on the shelf. Gives: requests. Does not know how they are sent or drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise

from loramux_client.shelf import Adapter

Blend = tuple[tuple[str, float], ...]

STEPS = 20
GUIDANCE = 3.0

CAPTIONS = ("a red apple", "a fox on a blue background", "a house", "an owl", "a sailboat on a pink background")
"""Everyday things, said as the built-in base learned them."""
SEEDS = (7, 21, 3, 12, 5)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of the demo; the blend pairs names and weights."""

    prompt: str
    blend: Blend
    seed: int
    steps: int = STEPS
    guidance: float = GUIDANCE


def crowd(adapters: Sequence[Adapter]) -> list[Ask]:
    """Requests to be sent at once: none, one, two and three adapters, no two blends the same."""
    names = [adapter.name for adapter in adapters]
    blends: list[Blend] = [(), *(((name, 1.0),) for name in names)]
    blends += [((one, 0.5 + number / 10), (other, 0.5)) for number, (one, other) in enumerate(pairwise(names))]
    threes = list(zip(names, names[1:], names[2:], strict=False))
    blends += [((one, 0.5), (two, 0.4), (three, 0.3)) for one, two, three in threes[:1] + threes[2:]]
    captions = cycle(CAPTIONS)
    return [
        Ask(
            prompt=subject_caption(adapters, blend) or next(captions),
            blend=blend,
            seed=100 + number,
            steps=(20, 12, 16, 24)[number % 4],
            guidance=(3.0, 1.0, 5.0)[number % 3],
        )
        for number, blend in enumerate(blends)
    ]


def sheet_rows(adapters: Sequence[Adapter]) -> list[tuple[str, int]]:
    """Prompt and seed of each row of the contact sheet; the last one brings out a subject, if there is one."""
    everyone: Blend = tuple((adapter.name, 1.0) for adapter in adapters)
    subject = subject_caption(adapters, everyone)
    captions = CAPTIONS if subject is None else (*CAPTIONS[:-1], subject)
    return list(zip(captions, SEEDS, strict=True))


def sheet_blends(adapters: Sequence[Adapter]) -> list[Blend]:
    """The columns of the contact sheet: without adapters, with each, and blended."""
    subjects = [adapter.name for adapter in adapters if adapter.trigger_words]
    styles = [adapter.name for adapter in adapters if not adapter.trigger_words]
    blended = [styles[:2], [*subjects[:1], *styles[-2:]] if subjects else styles[-3:]]
    singles: list[Blend] = [((name, 1.0),) for name in (*styles, *subjects)]
    return [(), *singles, *(tuple((name, 0.6) for name in names) for names in blended)]


def subject_caption(adapters: Sequence[Adapter], blend: Blend) -> str | None:
    """The caption that brings out the subject of a blend: adapters that teach a thing name it as trigger word."""
    used = {name for name, _ in blend}
    words = [adapter.trigger_words[0] for adapter in adapters if adapter.trigger_words and adapter.name in used]
    return f"a {words[0]}" if words else None


def blend_text(blend: Blend) -> str:
    """A blend, for people."""
    return " + ".join(f"{name} {weight:g}" for name, weight in blend) or "none"
