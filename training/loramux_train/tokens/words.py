"""Where new words stand in a text.

Takes a text; gives its pieces, with the number of a word in each place where it stands: by the rules by which the
server finds the triggers of embeddings. Knows no tokens and no vectors.
"""

import re
import unicodedata
from collections.abc import Sequence


class Words:
    """Words to look for, in upper or lower case, each as a word of its own: no letter, digit or underscore touches one
    at its ends. Of words that begin at one place the longest is found."""

    def __init__(self, words: Sequence[str]) -> None:
        self._order = sorted(range(len(words)), key=lambda number: -len(words[number]))
        groups = "|".join(f"({_own(words[number])})" for number in self._order)
        self._pattern = re.compile(groups, re.IGNORECASE) if words else None

    def split(self, text: str) -> list[str | int]:
        """The text around words, never empty, and the numbers of words, in their order."""
        if self._pattern is None:
            return [text] if text else []
        text = unicodedata.normalize("NFC", text)
        pieces: list[str | int] = []
        place = 0
        for found in self._pattern.finditer(text):
            pieces += [text[place : found.start()], self._order[(found.lastindex or 0) - 1]]
            place = found.end()
        return [piece for piece in (*pieces, text[place:]) if piece != ""]

    def within(self, text: str) -> bool:
        """Whether any stands in a text."""
        return self._pattern is not None and self._pattern.search(unicodedata.normalize("NFC", text)) is not None


def _own(word: str) -> str:
    inside = r"\s+".join(map(re.escape, word.split()))
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", word) else ""
    return f"{before}{inside}{after}"
