"""Which pictures are kept out of training, to measure the loss on.

Takes content hashes; gives some of them. By content, so that all repeats, mirrored uses and copies of a picture are on
one side.
"""

import hashlib
from collections.abc import Iterable

from loramux_train.data_settings import DataSettings

_USUAL, _ENOUGH = 0.1, 40  # with fewer, a picture is worth more learnt than measured


def validation_contents(contents: Iterable[str], settings: DataSettings) -> frozenset[str]:
    """The share of different contents that the settings ask for, at most half: rounded, at least one and never all.

    Unset it is a tenth where there are enough. The order they are taken in depends on the seed and each content alone:
    pictures added later move few others.
    """
    different = sorted(set(contents), key=lambda content: _rank(content, settings.seed))
    share = settings.validation_share
    if share is None:
        share = _USUAL if len(different) >= _ENOUGH else 0.0
    if not share or len(different) < 2:
        return frozenset()
    return frozenset(different[: max(1, round(share * len(different)))])


def _rank(content: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{content}".encode()).hexdigest()
