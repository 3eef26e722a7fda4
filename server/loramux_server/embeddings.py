"""What a blend asks of embeddings that they cannot do.

Takes resolved blends; gives violations. An embedding acts in the text encoders, which run once: nothing of it changes
over the steps, and nothing of it is in the UNet. It knows no prompt and no store.
"""

from collections.abc import Sequence

from loramux_server.errors import Violation
from loramux_server.requests import Weighted


def violations(field: str, blend: Sequence[Weighted]) -> list[Violation]:
    """For the blend of a field, as asked for."""
    found: list[Violation] = []
    triggers: dict[str, int] = {}
    for index, weighted in enumerate(blend):
        embedding = weighted.version.embedding
        if embedding is None:
            continue
        where = f"{field}.entries[{index}]"
        found += _out_of_reach(where, weighted)
        first = triggers.setdefault(" ".join(embedding.trigger.casefold().split()), index)
        if first != index:
            said = f"has the trigger {embedding.trigger!r} of {field}.entries[{first}], expected every trigger once"
            found.append(Violation(f"{where}.adapter", said))
    return found


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
