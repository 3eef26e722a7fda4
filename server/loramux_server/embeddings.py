"""Which embeddings act in which text encoder, and what a blend asks of them that they cannot do.

Takes resolved blends; gives what acts, and violations. An embedding acts in the text encoders, which run once: nothing
of it changes over the steps, and nothing of it is in the UNet. One that is bundled with a LoRA acts whole, whatever the
LoRA's weight, unless the LoRA is off there. It knows no prompt and no store.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from loramux_server.errors import Violation
from loramux_server.requests import Weighted
from loramux_store.names import spelled
from loramux_store.record import Embedding


@dataclass(frozen=True, slots=True)
class Acting:
    """An embedding that acts in a text encoder. place: of its adapter in the blend; number: among the adapter's own;
    factor: of its vectors; bundled: whether it came with a LoRA, which acts where its trigger stands nowhere too."""

    place: int
    weighted: Weighted
    number: int
    embedding: Embedding
    factor: float
    bundled: bool


def acting(blend: Sequence[Weighted], encoder: str) -> list[Acting]:
    """In a text encoder, in the order of the blend; what has weight 0 there is off."""
    return [
        Acting(place, weighted, number, embedding, 1.0 if bundled else weight, bundled)
        for place, weighted in enumerate(blend)
        if (weight := weighted.in_text_encoder(encoder)) != 0
        for bundled in [weighted.version.embedding is None]
        for number, embedding in enumerate(weighted.version.embeddings)
        if encoder in embedding.widths
    ]


def bundled_triggers(weighted: Weighted) -> list[str]:
    """Of what is bundled with a LoRA and acts in some text encoder."""
    return [
        each.trigger
        for each in weighted.version.bundled
        if any(weighted.in_text_encoder(encoder) != 0 for encoder in each.widths)
    ]


def violations(field: str, blend: Sequence[Weighted]) -> list[Violation]:
    """For the blend of a field, as asked for."""
    found: list[Violation] = []
    for index, weighted in enumerate(blend):
        if weighted.version.embedding is not None:
            found += _out_of_reach(f"{field}.entries[{index}]", weighted)
    return [*found, *_twice(field, blend)]


def _twice(field: str, blend: Sequence[Weighted]) -> list[Violation]:
    """Triggers that two adapters have in one text encoder, where neither is off; each pair once."""
    found: dict[tuple[int, int], Violation] = {}
    for encoder in sorted({encoder for w in blend for each in w.version.embeddings for encoder in each.widths}):
        first: dict[str, Acting] = {}
        for each in acting(blend, encoder):
            other = first.setdefault(spelled(each.embedding.trigger), each)
            if other is not each:
                said = (
                    f"{_name(each)} has the trigger {each.embedding.trigger!r} of {field}.entries[{other.place}], "
                    f"{_name(other)}, expected every trigger once"
                )
                where = f"{field}.entries[{each.place}].adapter"
                found.setdefault((other.place, each.place), Violation(where, said))
    return list(found.values())


def _name(each: Acting) -> str:
    bundled = "the embedding bundled with " if each.bundled else ""
    return f"{bundled}{each.weighted.version.adapter}@{each.weighted.version.number}"


def _out_of_reach(where: str, weighted: Weighted) -> list[Violation]:
    only = "is given for an embedding, which acts in the text encoders alone"
    found: list[Violation] = []
    if weighted.parts.unet != 1:
        found.append(Violation(f"{where}.part_weights.unet", only))
    if weighted.parts.blocks:
        found.append(Violation(f"{where}.part_weights.blocks", only))
    if weighted.schedule:
        found.append(Violation(f"{where}.schedule", f"{only}, once for all steps"))
    return found
