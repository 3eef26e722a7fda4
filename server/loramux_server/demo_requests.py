"""What the demo asks for: many different blends at once, then the same pictures with every adapter.

Takes: the adapters on the shelf. Gives: requests. Does not know how they are sent or drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from loramux_client.shelf import Adapter

SHEET_STEPS = 15
SHEET_GUIDANCE = 3.0

SUBJECTS = ("a red apple", "a cat face", "a house", "a yellow flower", "a rocket")
"""Everyday nouns that the built-in base draws well."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of the demo; the blend maps names to weights."""

    prompt: str
    blend: tuple[tuple[str, float], ...]
    seed: int
    steps: int
    guidance: float

    def blend_text(self, nothing: str = "none") -> str:
        """The blend, for people."""
        return " + ".join(f"{name} {weight:g}" for name, weight in self.blend) or nothing


def crowd(adapters: Sequence[Adapter]) -> list[Ask]:
    """Requests to be sent at once: none, one, two and three adapters; no two blends the same."""
    names = [adapter.name for adapter in adapters]
    blends: list[tuple[tuple[str, float], ...]] = [()]
    blends += [((name, 1.0),) for name in names]
    weights = ((0.6, 0.5), (0.4, 0.7), (0.8, 0.3))
    pairs = list(combinations(names, 2))[:: max(1, len(names) - 2)]
    blends += [tuple(zip(pair, pair_weights, strict=True)) for pair, pair_weights in zip(pairs, weights, strict=False)]
    blends += [tuple(zip(three, (0.5, 0.4, 0.3), strict=True)) for three in list(combinations(names, 3))[:1]]
    return [
        Ask(
            prompt=SUBJECTS[number % len(SUBJECTS)],
            blend=blend,
            seed=100 + number,
            steps=10 + 2 * (number % 4),
            guidance=(3.0, 1.0, 5.0)[number % 3],
        )
        for number, blend in enumerate(blends)
    ]


def sheet_rows(adapters: Sequence[Adapter]) -> list[tuple[str, int]]:
    """Prompt and seed of each row of the contact sheet; the last ones bring out the subjects, if there are any."""
    triggers = [adapter.trigger_words[0] for adapter in adapters if is_subject(adapter)]
    return [*zip(SUBJECTS, (7, 21, 3, 12, 5), strict=True)][: 5 - len(triggers[:1])] + [(t, 4) for t in triggers[:1]]


def sheet_blends(adapters: Sequence[Adapter]) -> list[tuple[tuple[str, float], ...]]:
    """The columns of the contact sheet: without adapters, with each, and blended."""
    names = [adapter.name for adapter in adapters]
    styles = [adapter.name for adapter in adapters if not is_subject(adapter)]
    subjects = [adapter.name for adapter in adapters if is_subject(adapter)]
    two = tuple((name, 0.6) for name in styles[:2])
    three = tuple((name, 0.5) for name in (*subjects[:1], *styles[-2:]))
    return [(), *(((name, 1.0),) for name in names), two, three]


def is_subject(adapter: Adapter) -> bool:
    """Whether an adapter teaches a thing rather than a style; its trigger word is then a prompt."""
    return adapter.labels.get("kind") == "subject" and bool(adapter.trigger_words)
